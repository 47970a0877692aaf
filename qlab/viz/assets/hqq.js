// HQQ on one group: errors, what shrinkage puts aside, and the zero point moving.
qlab.define("hqq", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const w = data.weights, n = w.length;
  // Half to even, as the package rounds.
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const shrink = (x, beta) => {
    const size = Math.abs(x);
    return size === 0 ? 0 : Math.sign(x) * Math.max(size - size ** (data.p - 1) / beta, 0);
  };
  const stateOf = (run, k) => {
    const z = run.zeros[k], s = run.scale, top = 2 ** run.bits - 1;
    const codes = w.map(v => Math.max(0, Math.min(top, round(v / s + z))));
    const rest = w.map((v, i) => v - (codes[i] - z) * s), aside = rest.map(r => shrink(r, run.beta));
    const mean = values => values.reduce((a, b) => a + b, 0) / n;
    return { z, s, codes, rest, aside, absolute: mean(rest.map(Math.abs)), square: mean(rest.map(r => r * r)),
      left: mean(rest.map((r, i) => r - aside[i])), kept: aside.filter(a => a !== 0).length };
  };
  root.qlabState = (run, k) => stateOf(data.runs[run], k);

  const bitsOf = [...new Set(data.runs.map(r => r.bits))];
  const perBits = data.runs.length / bitsOf.length, steps = data.runs[0].zeros.length - 1;
  const names = ["the library's", "larger", "larger still"];
  const state = { bits: 1, beta: 0, k: 0 };
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640;
  const low = Math.min(...w), high = Math.max(...w), margin = (high - low) * 0.04;
  const holder = el("div"), below = el("div"), read = qlab.readout();
  const update = () => {
    const run = data.runs[state.bits * perBits + state.beta], now = stateOf(run, state.k);
    const top = 2 ** run.bits - 1;
    const plot = qlab.plot({ label: "Error of each weight against its value", xLabel: data.name,
      yLabel: "error (steps)", xRange: [low - margin, high + margin], yRange: [-0.8, 0.8], height: 270, width });
    const { x, y, layer } = plot;
    for (let q = 0; q <= top; q++) {
      const at = (q - now.z) * now.s;
      if (at < low - margin || at > high + margin) continue;
      layer.append(svgEl("line", { x1: x(at), x2: x(at), y1: y(-0.8), y2: y(0.8), stroke: colors[5],
        "stroke-opacity": 0.9, "stroke-width": 1 }));
    }
    layer.append(svgEl("line", { class: "axis", x1: x(low - margin), x2: x(high + margin), y1: y(0), y2: y(0) }));
    const inside = v => Math.max(-0.8, Math.min(0.8, v));
    w.forEach((v, i) => {
      layer.append(svgEl("circle", { cx: x(v), cy: y(inside(now.rest[i] / now.s)), r: 3.2, fill: colors[1],
        "fill-opacity": 0.85 }));
      if (now.aside[i] !== 0) {
        const cx = x(v), cy = y(inside(now.aside[i] / now.s));
        layer.append(svgEl("path", { d: `M${cx} ${cy - 5}l5 5l-5 5l-5 -5z`, fill: "none", stroke: colors[2],
          "stroke-width": 1.8 }));
      }
    });
    layer.append(svgEl("line", { x1: x(low - margin), x2: x(high + margin), y1: y(now.left / now.s),
      y2: y(now.left / now.s), stroke: colors[3], "stroke-width": 2.5, "stroke-dasharray": "7 4" }));
    holder.replaceChildren(plot.svg);

    const all = run.zeros.map((_, k) => stateOf(run, k)), first = all[0];
    const values = [all.map(a => a.absolute / first.absolute), all.map(a => a.square / first.square)];
    const flat = values.flat(), bottom = Math.min(...flat), peak = Math.max(...flat), room = Math.max(peak - bottom, 0.02) * 0.1;
    const curve = qlab.plot({ label: "Error at each iteration, relative to the first", xLabel: "iteration",
      yLabel: "error / first", xRange: [0, steps], yRange: [bottom - room, peak + room], height: 190, width });
    values.forEach((v, i) => curve.layer.append(path(v.map((e, k) => [curve.x(k), curve.y(e)]),
      { stroke: colors[i], "stroke-dasharray": i ? "" : "6 4" })));
    values.forEach((v, i) => curve.layer.append(svgEl("circle", { cx: curve.x(state.k), cy: curve.y(v[state.k]), r: 5,
      fill: colors[i] })));
    below.replaceChildren(curve.svg);

    const before = state.k ? stateOf(run, state.k - 1) : now;
    const changed = now.codes.filter((c, i) => c !== before.codes[i]).length;
    read.replaceChildren(`After ${state.k} iterations the zero point is `, el("strong", {}, now.z.toFixed(3)),
      state.k ? ` (moved by ${(now.z - before.z).toFixed(3)}, ${changed} of ${n} codes changed)` : " (of the range)",
      ". Mean |error| ", el("strong", {}, (now.absolute / now.s).toFixed(4) + " steps"),
      `, mean squared error ${(now.square / now.s ** 2).toFixed(4)} steps². Shrinkage puts `,
      el("strong", {}, `${now.kept} of ${n}`), ` errors aside; it begins at `
      + `${number(run.beta ** (-1 / (2 - data.p)) / now.s)} steps.`);
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Iterations", 0, steps, 0, v => String(v), v => { state.k = v; update(); }),
    choice("Bits", bitsOf.map(b => b + " bits"), state.bits, i => { state.bits = i; update(); }),
    choice("β of the shrinkage", names, state.beta, i => { state.beta = i; update(); })),
    holder, read, below,
    el("p", { class: "qfig-read" }, "Above: dots are errors, diamonds what is put aside, the dashed line the mean of the "
      + "rest. Below: mean |error| (dashed) and mean squared error (solid)."));
  update();
});
