// One weight on the staircase of its codes, walking by the straight-through gradient.
qlab.define("straightthrough", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const { target, scale, top } = data;
  // Half to even, as the package rounds.
  const even = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const rounded = w => Math.max(-top, Math.min(top, even(w / scale))) * scale;
  const loss = v => (v - target) ** 2 / 2;
  const walk = (start, lr, rule) => {
    const found = [];
    let w = start;
    for (let i = 0; i <= data.steps; i++) {
      const hat = rounded(w);
      found.push([w, hat]);
      const passes = rule === 0 || (rule === 1 && Math.abs(even(w / scale)) <= top);
      w = w - lr * (hat - target) * (passes ? 1 : 0);
    }
    return found;
  };
  root.qlabWalk = walk;
  const state = { start: data.start, lr: 2, rule: 0, step: data.steps };
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const low = data.starts[0] - 0.2, high = data.starts[data.starts.length - 1] + 0.2;
  const at = Array.from({ length: 901 }, (_, i) => low + (high - low) * i / 900);
  const above = el("div"), below = el("div"), read = qlab.readout();
  const update = () => {
    const all = walk(data.starts[state.start], data.rates[state.lr], state.rule);
    const steps = all.slice(0, state.step + 1), [w, hat] = steps[steps.length - 1];
    const peak = Math.max(loss(low), loss(high)) * 1.05;
    const one = qlab.plot({ label: "Loss against the weight", xLabel: "weight w", yLabel: "loss",
      xRange: [low, high], yRange: [0, peak], width, height: 280 });
    const end = top * scale + scale / 2;
    one.layer.append(svgEl("rect", { x: one.x(-end), width: one.x(end) - one.x(-end), y: 12, height: 220,
      fill: "currentColor", "fill-opacity": 0.06 }));
    one.layer.append(path(at.map(v => [one.x(v), one.y(loss(v))]), { stroke: "currentColor",
      "stroke-opacity": 0.55, "stroke-dasharray": "5 4", "stroke-width": 1.5 }));
    one.layer.append(path(at.map(v => [one.x(v), one.y(loss(rounded(v)))]), { stroke: colors[0], "stroke-width": 2.4 }));
    steps.forEach(([a, h], i) => one.layer.append(svgEl("circle", { cx: one.x(Math.max(low, Math.min(high, a))),
      cy: one.y(loss(h)), r: i === steps.length - 1 ? 6 : 3, fill: colors[1],
      "fill-opacity": i === steps.length - 1 ? 1 : 0.45 })));
    above.replaceChildren(one.svg);
    const two = qlab.plot({ label: "Weight against the step", xLabel: "step", yLabel: "w and ŵ", xRange: [0, data.steps],
      yRange: [low, high], width, height: 220 });
    two.layer.append(path([[two.x(0), two.y(target)], [two.x(data.steps), two.y(target)]],
      { stroke: "currentColor", "stroke-opacity": 0.55, "stroke-dasharray": "2 3", "stroke-width": 1.5 }));
    two.layer.append(path(steps.map(([a], i) => [two.x(i), two.y(Math.max(low, Math.min(high, a)))]), { stroke: colors[1] }));
    steps.forEach(([, h], i) => two.layer.append(svgEl("circle", { cx: two.x(i), cy: two.y(h), r: 3, fill: colors[0] })));
    below.replaceChildren(two.svg);
    const last = all.slice(-20), mean = last.reduce((a, s) => a + s[1], 0) / last.length;
    const levels = [...new Set(last.map(s => number(s[1])))];
    const moved = Math.abs(all[all.length - 1][0] - all[0][0]) > 1e-9;
    read.replaceChildren(`Step ${state.step}: w = `, el("strong", {}, number(w)), `, ŵ = `, el("strong", {}, number(hat)),
      `, loss ${number(loss(hat))}. `, !moved ? "The weight never moves. "
        : `In the last 20 steps ŵ is ${levels.join(" or ")}, ${number(mean)} on average; the target is ${number(target)}.`);
  };
  root.append(el("div", { class: "qfig-controls" },
    choice("Derivative of rounding", data.rules, state.rule, i => { state.rule = i; update(); }),
    slider("Start", 0, data.starts.length - 1, state.start, i => number(data.starts[i]), i => { state.start = i; update(); }),
    slider("Learning rate", 0, data.rates.length - 1, state.lr, i => number(data.rates[i]), i => { state.lr = i; update(); }),
    slider("Step", 0, data.steps, state.step, i => String(i), i => { state.step = i; update(); })),
  above, read, below);
  update();
});
