// AWQ on one layer: the ratio of the scales, and which columns make the error.
qlab.define("awq", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const bins = data.runs[0].parts[0].length, n = data.ratios.length;
  const sum = values => values.reduce((a, b) => a + b, 0);
  const state = { run: Math.min(1, data.runs.length - 1), k: 0, top: Math.round(bins / 8) };
  // All relative to plain rounding, ratio 0.
  const stateOf = (run, k, top) => {
    const first = run.parts[0], now = run.parts[k];
    return { total: run.totals[k] / run.totals[0], important: sum(now.slice(0, top)) / sum(first.slice(0, top)),
      rest: top < bins ? sum(now.slice(top)) / sum(first.slice(top)) : 0,
      share: sum(first.slice(0, top)) / sum(first) };
  };
  root.qlabState = (run, k, top) => stateOf(data.runs[run], k, top);
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640;
  const above = el("div"), below = el("div"), read = qlab.readout();
  const update = () => {
    const run = data.runs[state.run], all = data.ratios.map((_, k) => stateOf(run, k, state.top)), now = all[state.k];
    const best = run.totals.indexOf(Math.min(...run.totals));
    const lines = [all.map(a => a.important), all.map(a => a.rest), all.map(a => a.total)];
    // A ratio far from the best may be many times as bad: cut, as the shape near 1 is what counts.
    const high = Math.min(2.5, Math.max(1.1, ...lines.flat()) * 1.05);
    const plot = qlab.plot({ label: "Error against the ratio", xLabel: "ratio", yLabel: "error / ratio 0",
      xRange: [0, data.ratios[n - 1]], yRange: [0, high], height: 260, width });
    const { x, y, layer } = plot, inside = v => Math.min(v, high);
    layer.append(svgEl("line", { class: "axis", x1: x(0), x2: x(data.ratios[n - 1]), y1: y(1), y2: y(1),
      "stroke-dasharray": "2 3" }));
    ["6 4", "2 4", ""].forEach((dash, i) => layer.append(path(lines[i].map((v, k) => [x(data.ratios[k]), y(inside(v))]),
      { stroke: colors[i === 2 ? 0 : i + 1], "stroke-dasharray": dash, "stroke-width": i === 2 ? 2.6 : 2 })));
    layer.append(svgEl("line", { class: "axis", x1: x(data.ratios[state.k]), x2: x(data.ratios[state.k]), y1: y(0), y2: y(high) }));
    layer.append(svgEl("circle", { cx: x(data.ratios[best]), cy: y(inside(all[best].total)), r: 5, fill: colors[0] }));
    above.replaceChildren(plot.svg);

    const first = run.parts[0], parts = run.parts[state.k];
    const peak = Math.max(...first, ...parts) * 1.05;
    const bars = qlab.plot({ label: "Error of each part of the columns", xLabel: "columns, largest inputs first",
      yLabel: "share of the error", xRange: [0, bins], yRange: [0, peak / sum(first)], height: 210, width,
      xTicks: [0, bins / 4, bins / 2, 3 * bins / 4, bins], xFormat: t => Math.round(t / bins * data.columns),
      yFormat: v => Math.round(v * 1000) / 10 + "%" });
    parts.forEach((v, i) => bars.layer.append(svgEl("rect", { x: bars.x(i + 0.1), width: bars.x(i + 0.9) - bars.x(i + 0.1),
      y: bars.y(v / sum(first)), height: bars.y(0) - bars.y(v / sum(first)),
      fill: colors[i < state.top ? 1 : 2], "fill-opacity": 0.75 })));
    first.forEach((v, i) => bars.layer.append(path([[bars.x(i + 0.1), bars.y(0)], [bars.x(i + 0.1), bars.y(v / sum(first))],
      [bars.x(i + 0.9), bars.y(v / sum(first))], [bars.x(i + 0.9), bars.y(0)]],
    { stroke: "currentColor", "stroke-opacity": 0.7, "stroke-width": 1.2 })));
    below.replaceChildren(bars.svg);

    const percent = v => (v >= 1 ? "+" : "−") + Math.abs((v - 1) * 100).toFixed(0) + "%";
    read.replaceChildren(`Ratio ${data.ratios[state.k].toFixed(2)}: output error `, el("strong", {}, percent(now.total)),
      " against plain rounding. The ", `${Math.round(state.top / bins * data.columns)} columns with the largest inputs `
      + `(${(now.share * 100).toFixed(0)}% of the error at ratio 0): `, el("strong", {}, percent(now.important)),
      state.top < bins ? `; the others: ${percent(now.rest)}. ` : ". ",
      `Best is ratio ${data.ratios[best].toFixed(2)}, ${percent(run.totals[best] / run.totals[0])}.`);
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Ratio", 0, n - 1, 0, k => data.ratios[k].toFixed(2), k => { state.k = k; update(); }),
    slider("Important columns", 1, bins, state.top, t => Math.round(t / bins * data.columns) + " of " + data.columns,
      t => { state.top = t; update(); }),
    choice("Bits", data.runs.map(r => r.bits + " bits"), state.run, i => { state.run = i; update(); })),
    above, read, below,
    el("p", { class: "qfig-read" }, "Above: the output error (solid, with its least), the important columns (dashed), "
      + "the others (dotted). Below: bars are the ratio that you chose, outlines ratio 0."));
  update();
});
