// Calibration: the range that a text and a percentile give, and what the whole model makes of it.
qlab.define("calibration", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const { percentiles, sources, bits } = data;
  const at = (source, b, p) => data.grid[(source * bits.length + b) * percentiles.length + p];
  const state = { source: 0, bits: bits.length - 1, percentile: percentiles.length - 1 };
  const n = data.counts.length, wide = (data.high - data.low) / n;
  const peak = Math.max(...data.counts);
  const lows = data.grid.map(g => g.low), highs = data.grid.map(g => g.high);
  const xRange = [Math.min(data.low, ...lows), Math.max(data.high, ...highs)];
  const plot = qlab.plot({ label: `Histogram of the inputs of ${data.layer}`,
    xLabel: `input of ${data.layer}`, yLabel: "values", xRange, yRange: [0.7, peak * 1.5], yLog: true, height: 240,
    yFormat: v => v >= 1000 ? v / 1000 + "k" : String(v) });
  const { x, y, layer } = plot;
  data.counts.forEach((count, i) => {
    if (!count) return;
    const from = x(data.low + i * wide), to = x(data.low + (i + 1) * wide);
    layer.append(svgEl("rect", { x: from, width: Math.max(to - from, 0.6), y: y(count), height: y(0.7) - y(count),
      fill: colors[0], "fill-opacity": 0.55 }));
  });
  const sides = svgEl("g");
  layer.append(sides);
  // Percentiles crowd together below 100, so their places are equally spaced.
  const all = data.grid.map(g => g.perplexity).concat(data.unquantized);
  const curve = qlab.plot({ label: "Perplexity against the percentile", xLabel: "percentile (percent of the values inside)",
    yLabel: "perplexity", xRange: [-0.3, percentiles.length - 0.7], yRange: [Math.min(...all) * 0.95, Math.max(...all) * 1.08],
    yLog: true, height: 270, xTicks: percentiles.map((_, i) => i), xFormat: i => String(percentiles[i]) });
  const dashes = ["", "7 4", "2 4", "9 3 2 3", "4 2"];
  const read = qlab.readout();
  const update = () => {
    const now = at(state.source, state.bits, state.percentile);
    sides.replaceChildren(...[now.low, now.high].map(v => svgEl("line", { x1: x(v), x2: x(v), y1: y(0.7), y2: y(peak * 1.5),
      stroke: colors[1], "stroke-width": 2.5, "stroke-dasharray": "5 3" })));
    curve.clear();
    const base = curve.y(data.unquantized);
    curve.layer.append(svgEl("line", { class: "axis", x1: curve.x(-0.3), x2: curve.x(percentiles.length - 0.7), y1: base, y2: base,
      "stroke-dasharray": "1 3" }));
    sources.forEach((_, s) => {
      const points = percentiles.map((_, p) => [curve.x(p), curve.y(at(s, state.bits, p).perplexity)]);
      const line = path(points, { stroke: colors[s % colors.length], "stroke-dasharray": dashes[s % dashes.length] });
      line.setAttribute("stroke-width", s === state.source ? 3.2 : 1.6);
      curve.layer.append(line);
    });
    curve.layer.append(svgEl("circle", { cx: curve.x(state.percentile), cy: curve.y(now.perplexity), r: 6,
      fill: colors[state.source % colors.length], stroke: "currentColor" }));
    const sum = now.rounding + now.clipping;
    const db = sum > 0 ? (10 * Math.log10(data.power / sum)).toFixed(1) + " dB" : "infinite";
    read.replaceChildren(`Range ${number(now.low)} to ${number(now.high)}: ${number(100 * now.clipped)} percent of the values are clipped. `
      + `Squared error ${number(now.rounding)} (rounding) + ${number(now.clipping)} (clipping), SQNR ${db}. Perplexity `,
      el("strong", {}, number(now.perplexity, 4)), `, in floating point ${number(data.unquantized, 4)}.`);
  };
  const legend = el("p", { class: "qfig-read" });
  sources.forEach((name, s) => {
    const key = svgEl("svg", { viewBox: "0 0 30 10", role: "img", "aria-label": "line of " + name,
      style: "display:inline-block;width:30px;height:10px;margin:0 .35em 0 .9em;vertical-align:middle" });
    key.append(path([[0, 5], [30, 5]], { stroke: colors[s % colors.length], "stroke-dasharray": dashes[s % dashes.length] }));
    legend.append(el("span", { style: "white-space:nowrap" }, key, name), " ");
  });
  root.append(el("div", { class: "qfig-controls" },
    slider("Percentile", 0, percentiles.length - 1, state.percentile, v => String(percentiles[v]),
      v => { state.percentile = v; update(); }),
    choice("Calibrated on", sources, state.source, v => { state.source = v; update(); }),
    choice("Bits of an activation", bits.map(b => b + " bits"), state.bits, v => { state.bits = v; update(); })),
    plot.svg, read, curve.svg, legend);
  update();
});
