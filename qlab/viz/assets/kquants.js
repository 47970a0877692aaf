// One sub-block of Q4_K: the error over scale and minimum, and the way of the search through it.
qlab.define("kquants", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const SUB = 32, TOP = 15;
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const stateOf = (w, cost, scale, low) => {
    let plain = 0, weighted = 0, total = 0;
    const codes = [], gaps = [];
    for (let i = 0; i < w.length; i++) {
      const c = Math.max(0, Math.min(TOP, round((w[i] - low) / scale))), gap = scale * c + low - w[i];
      codes.push(c); gaps.push(gap);
      plain += gap * gap; weighted += cost[i] * gap * gap; total += cost[i];
    }
    return { codes, gaps, plain: plain / w.length, weighted: weighted / total };
  };
  const part = (all, sub) => all.slice(sub * SUB, (sub + 1) * SUB);
  root.qlabState = (which, sub, scale, low) =>
    stateOf(part(data.weights, sub), part(data.costs[which], sub), scale, low);

  // Both axes are relative to what the range gives: (max - min) / 15, and the smallest weight.
  const X = [0.8, 1.12], Y = [0.8, 1.16], NX = 40, NY = 30;
  const state = { sub: 0, which: 1, x: 1, y: 1 };
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640;
  const holder = el("div"), below = el("div"), read = qlab.readout(), controls = el("div", { class: "qfig-controls" });
  const walk = () => data.paths[state.which][state.sub];
  const unit = () => walk()[0];
  const clamp = (v, [a, b]) => Math.max(a, Math.min(b, v));
  const inputs = {};
  // Begin where the search gains most over the range.
  const gains = data.paths[1].map((way, sub) => {
    const [first, last] = [way[0], way[way.length - 1]].map(([s, low]) => root.qlabState(1, sub, s, low).weighted);
    return last / first;
  });
  state.sub = gains.indexOf(Math.min(...gains));
  const show = () => {
    for (const [key, text] of [["x", state.x], ["y", state.y]]) {
      inputs[key].value = text;
      inputs[key].setAttribute("aria-valuetext", text.toFixed(3));
      inputs[key].parentNode.querySelector("output").textContent = text.toFixed(3);
    }
  };
  const place = k => {
    const [s, low] = walk()[k], [s0, low0] = unit();
    state.x = s / s0; state.y = low / low0;
    show();
  };
  let map;
  const drawMap = () => {
    const w = part(data.weights, state.sub), cost = part(data.costs[state.which], state.sub), [s0, low0] = unit();
    map = qlab.plot({ label: "Weighted error over scale and minimum", xLabel: "scale / scale of the range",
      yLabel: "minimum / smallest weight", xRange: X, yRange: Y, height: 320, width });
    const errors = [];
    for (let j = 0; j < NY; j++) for (let i = 0; i < NX; i++)
      errors.push(Math.log(stateOf(w, cost, s0 * (X[0] + (i + 0.5) / NX * (X[1] - X[0])),
        low0 * (Y[0] + (j + 0.5) / NY * (Y[1] - Y[0]))).weighted));
    const least = Math.min(...errors), most = Math.max(...errors);
    const dx = (map.x(X[1]) - map.x(X[0])) / NX, dy = (map.y(Y[0]) - map.y(Y[1])) / NY;
    errors.forEach((e, k) => map.layer.append(svgEl("rect", { x: map.x(X[0]) + k % NX * dx,
      y: map.y(Y[0]) - (Math.floor(k / NX) + 1) * dy, width: dx + 0.3, height: dy + 0.3, fill: colors[0],
      "fill-opacity": (0.9 * (1 - (e - least) / (most - least)) ** 2).toFixed(3) })));
    const at = ([s, low]) => [map.x(clamp(s / s0, X)), map.y(clamp(low / low0, Y))];
    const points = walk().map(at), [fx, fy] = points[0], [lx, ly] = points[points.length - 1];
    map.layer.append(path(points, { stroke: colors[4], "stroke-width": 2.2 }));
    points.forEach(([cx, cy]) => map.layer.append(svgEl("circle", { cx, cy, r: 2.4, fill: colors[4] })));
    map.layer.append(svgEl("circle", { cx: fx, cy: fy, r: 6, fill: "none", stroke: colors[4], "stroke-width": 2.2 }));
    map.layer.append(svgEl("path", { d: `M${lx} ${ly - 8}l8 8l-8 8l-8 -8z`, fill: "none", stroke: colors[1],
      "stroke-width": 2.5 }));
    map.cross = svgEl("path", { fill: "none", stroke: "currentColor", "stroke-width": 2.2, class: "you" });
    map.layer.append(map.cross);
    map.svg.style.touchAction = "pan-y";
    map.svg.style.cursor = "crosshair";
    const choose = event => {
      const box = map.svg.getBoundingClientRect(), view = map.svg.viewBox.baseVal;
      const px = (event.clientX - box.left) / box.width * view.width, py = (event.clientY - box.top) / box.height * view.height;
      state.x = clamp(X[0] + (px - map.x(X[0])) / (map.x(X[1]) - map.x(X[0])) * (X[1] - X[0]), X);
      state.y = clamp(Y[0] + (py - map.y(Y[0])) / (map.y(Y[1]) - map.y(Y[0])) * (Y[1] - Y[0]), Y);
      show(); update();
    };
    map.svg.addEventListener("pointerdown", choose);
    map.svg.addEventListener("pointermove", event => { if (event.buttons & 1) choose(event); });
    holder.replaceChildren(map.svg);
  };
  const update = () => {
    const w = part(data.weights, state.sub), cost = part(data.costs[state.which], state.sub), [s0, low0] = unit();
    const scale = state.x * s0, low = state.y * low0;
    const cx = map.x(clamp(state.x, X)), cy = map.y(clamp(state.y, Y));
    map.cross.setAttribute("d", `M${cx - 9} ${cy}h18M${cx} ${cy - 9}v18`);
    const now = stateOf(w, cost, scale, low), range = stateOf(w, cost, ...unit()), best = stateOf(w, cost, ...walk()[walk().length - 1]);

    const a = Math.min(...w), b = Math.max(...w), margin = (b - a) * 0.05, limit = 1.6;
    const plot = qlab.plot({ label: "Error of each weight against its value", xLabel: "weight", yLabel: "error (steps of the range)",
      xRange: [a - margin, b + margin], yRange: [-limit, limit], height: 230, width });
    for (let q = 0; q <= TOP; q++) {
      const v = low + q * scale;
      if (v >= a - margin && v <= b + margin) plot.layer.append(svgEl("line", { x1: plot.x(v), x2: plot.x(v), y1: plot.y(-limit),
        y2: plot.y(limit), stroke: colors[5], "stroke-width": 1 }));
    }
    plot.layer.append(svgEl("line", { class: "axis", x1: plot.x(a - margin), x2: plot.x(b + margin), y1: plot.y(0), y2: plot.y(0) }));
    const largest = Math.max(...cost);
    w.forEach((v, i) => plot.layer.append(svgEl("circle", { cx: plot.x(v), cy: plot.y(clamp(now.gaps[i] / s0, [-limit, limit])),
      r: 2 + 5 * Math.sqrt(cost[i] / largest), fill: colors[1], "fill-opacity": 0.65 })));
    below.replaceChildren(plot.svg);

    const percent = v => (100 * v).toFixed(1) + "%";
    read.replaceChildren("Your pair: scale ", el("strong", {}, number(scale, 4)), ", minimum ", el("strong", {}, number(low, 4)),
      ". Its weighted error is ", el("strong", {}, percent(now.weighted / range.weighted)), " of the range's, its plain error ",
      el("strong", {}, percent(now.plain / range.plain)), `. The search's choice: ${percent(best.weighted / range.weighted)} and `
      + `${percent(best.plain / range.plain)}` + (now.weighted < best.weighted * 0.9995 ? ". You beat the search." : "."));
  };
  const redo = () => { tries(); drawMap(); place(walk().length - 1); update(); };
  const triesHolder = el("div", { style: "flex: 1 1 9rem" });
  const tries = () => triesHolder.replaceChildren(slider("Tries of the search", 0, walk().length - 1, walk().length - 1,
    v => v === 0 ? "0 (the range)" : String(v), v => { place(v); update(); }));
  for (const [key, label, [a, b]] of [["x", "Scale / scale of the range", X], ["y", "Minimum / smallest weight", Y]]) {
    const made = slider(label, a, b, 1, v => v.toFixed(3), v => { state[key] = v; update(); }, 0.001);
    inputs[key] = made.querySelector("input");
    inputs[key].setAttribute("data-key", key);
    state[key + "Label"] = made;
  }
  controls.append(choice("An error costs", data.names, state.which, i => { state.which = i; redo(); }),
    choice("Sub-block", Array.from({ length: 8 }, (_, i) => `${i + 1} of 8`), state.sub, i => { state.sub = i; redo(); }),
    triesHolder, state.xLabel, state.yLabel);
  root.append(controls, holder, read, below, el("p", { class: "qfig-read" },
    "Below: a dot is a weight; the larger it is, the more its error costs. Vertical lines are the 16 levels."));
  redo();
});
