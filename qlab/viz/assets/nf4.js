// NF4: levels over a histogram of scaled weights, with the block size to choose.
qlab.define("nf4", (root, data) => {
  const { el, svgEl, slider, choice, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640;
  const state = { source: 0, form: 0, size: data.sizes.indexOf(64) };
  const above = el("div"), below = el("div"), read = qlab.readout();
  const update = () => {
    const counts = data.histograms[state.source][state.size], total = counts.reduce((a, b) => a + b, 0);
    const n = counts.length, share = counts.map(c => 100 * c / total), peak = Math.max(...share);
    const levels = data.levels[state.form], found = data.cases[state.source][state.size];
    const now = found[state.form];
    const plot = qlab.plot({ label: "Histogram of scaled weights with the levels", xLabel: "weight / largest of its block",
      yLabel: "share of weights (%)", xRange: [-1.03, 1.03], yRange: [0, peak * 1.05], height: 260, width });
    const { x, y, layer } = plot;
    const points = [[x(-1), y(0)]];
    share.forEach((s, i) => points.push([x(-1 + 2 * i / n), y(s)], [x(-1 + 2 * (i + 1) / n), y(s)]));
    points.push([x(1), y(0)]);
    layer.append(path(points, { stroke: colors[0], fill: colors[0], "fill-opacity": 0.3, "stroke-width": 1.2 }));
    for (const v of levels) {
      layer.append(svgEl("line", { x1: x(v), x2: x(v), y1: y(0), y2: 42, stroke: colors[1], "stroke-width": 1.8 }));
      layer.append(svgEl("circle", { cx: x(v), cy: 42, r: 3.5, fill: colors[1] }));
    }
    above.replaceChildren(plot.svg);
    const top = Math.max(...now.use, 15);
    const bars = qlab.plot({ label: "How often each level is used", xLabel: "level, from the lowest to the highest",
      yLabel: "use (%)", xRange: [0, levels.length], yRange: [0, top * 1.05], height: 170, width, xTicks: [] });
    now.use.forEach((u, i) => bars.layer.append(svgEl("rect", { x: bars.x(i + 0.12), width: bars.x(0.76) - bars.x(0),
      y: bars.y(u), height: Math.max(bars.y(0) - bars.y(u), 0), fill: colors[2], "fill-opacity": 0.75 })));
    const even = 100 / levels.length;
    bars.layer.append(svgEl("line", { x1: bars.x(0), x2: bars.x(levels.length), y1: bars.y(even), y2: bars.y(even),
      stroke: "currentColor", "stroke-dasharray": "6 4", "stroke-opacity": 0.7 }));
    below.replaceChildren(bars.svg);
    const best = Math.max(...found.map(f => f.sqnr)), bits = data.bits[state.size];
    read.replaceChildren(`Blocks of ${data.sizes[state.size]}, whose largest weight lies at `
      + `${data.largest[state.source][state.size].toFixed(2)} σ in the median: ${data.forms[state.form]} has `,
      el("strong", {}, now.sqnr.toFixed(2) + " dB"), ` (the best of the three ${best.toFixed(2)} dB), entropy of the codes `,
      el("strong", {}, now.entropy.toFixed(2) + " bits"),
      `. A weight costs ${bits[0]} bits, with doubly quantized scales `, el("strong", {}, bits[1] + " bits"), ".");
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Block size", 0, data.sizes.length - 1, state.size, i => `${data.sizes[i]} weights`,
      i => { state.size = i; update(); }),
    choice("Weights", data.sources, state.source, i => { state.source = i; update(); }),
    choice("Levels", data.forms, state.form, i => { state.form = i; update(); })),
    above, read, below);
  update();
});
