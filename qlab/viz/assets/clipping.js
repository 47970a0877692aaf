// Clip or round: a histogram, a clipping range, bits, and the two parts of the error.
qlab.define("clipping", (root, data) => {
  const { el, svgEl, slider, number, colors, path } = qlab;
  const n = data.counts.length, amax = data.amax, total = data.counts.reduce((a, b) => a + b, 0);
  const centers = data.counts.map((_, i) => -amax + (i + 0.5) * 2 * amax / n);
  // Half to even, as the package rounds.
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const parts = (clip, bits) => {
    const qmax = 2 ** (bits - 1) - 1, scale = clip / qmax;
    let rounding = 0, clipping = 0;
    centers.forEach((x, i) => {
      const back = Math.max(-qmax, Math.min(qmax, round(x / scale))) * scale;
      const e = (x - back) ** 2 * data.counts[i] / total;
      if (Math.abs(x) <= clip) rounding += e; else clipping += e;
    });
    return [rounding, clipping];
  };
  root.qlabParts = parts;
  const peak = Math.max(...data.counts);
  const plot = qlab.plot({ label: `Histogram of ${data.name} values`, xLabel: data.name, yLabel: "values",
    xRange: [-amax, amax], yRange: [0, peak * 1.05], height: 250 });
  const { x, y, layer } = plot;
  layer.append(path([[x(-amax), y(0)], ...centers.map((c, i) => [x(c), y(data.counts[i])]), [x(amax), y(0)]],
    { stroke: colors[0], fill: colors[0], "fill-opacity": 0.35 }));
  const levels = svgEl("g"), sides = svgEl("g");
  layer.append(levels, sides);
  const curve = qlab.plot({ label: "Error against the clipping range", xLabel: "clipping range / largest value",
    yLabel: "mean squared error", xRange: [0, 1], yRange: [0, 1], height: 210, yFormat: () => "" });
  const read = qlab.readout();
  const state = { clip: 100, bits: 4 };
  const drawCurve = () => {
    curve.clear();
    const at = Array.from({ length: 99 }, (_, i) => (i + 2) / 100), errors = at.map(c => parts(c * amax, state.bits));
    const sums = errors.map(e => e[0] + e[1]), top = Math.min(Math.max(...sums), Math.min(...sums) * 12);
    const line = (values, color, dash) => curve.layer.append(path(at.map((c, i) =>
      [curve.x(c), curve.y(Math.min(values[i] / top, 1))]), { stroke: color, "stroke-dasharray": dash }));
    line(errors.map(e => e[0]), colors[1], "6 4");
    line(errors.map(e => e[1]), colors[2], "2 4");
    line(sums, colors[0], "");
    const best = sums.indexOf(Math.min(...sums));
    curve.layer.append(svgEl("text", { x: curve.x(at[best]), y: curve.y(0.93), "text-anchor": "middle" }, "least"));
    curve.layer.append(svgEl("circle", { cx: curve.x(at[best]), cy: curve.y(sums[best] / top), r: 5, fill: colors[0] }));
    return [at[best], sums[best]];
  };
  let best = drawCurve();
  const mark = svgEl("line", { class: "axis", y1: 12, y2: 162 });
  curve.svg.append(mark);
  const update = () => {
    const clip = state.clip / 100 * amax, qmax = 2 ** (state.bits - 1) - 1;
    levels.replaceChildren();
    if (qmax <= 40) for (let q = -qmax; q <= qmax; q++) {
      const at = x(q * clip / qmax);
      levels.append(svgEl("line", { x1: at, x2: at, y1: y(0), y2: y(peak * 0.12), stroke: colors[1], "stroke-width": 1.5 }));
    }
    sides.replaceChildren(...[-clip, clip].map(v => svgEl("line", { x1: x(v), x2: x(v), y1: y(0), y2: y(peak),
      stroke: colors[2], "stroke-width": 2, "stroke-dasharray": "4 3" })));
    mark.setAttribute("x1", curve.x(state.clip / 100));
    mark.setAttribute("x2", curve.x(state.clip / 100));
    const [rounding, clipping] = parts(clip, state.bits), sum = rounding + clipping;
    read.replaceChildren(`Rounding ${number(rounding)} + clipping ${number(clipping)} = `,
      el("strong", {}, number(sum)), `, ${number(sum / best[1])} times the least, `
      + `which lies at ${number(best[0])} of the largest value.`);
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Clipping range", 2, 100, 100, v => (v / 100).toFixed(2) + " of the largest value",
      v => { state.clip = v; update(); }),
    slider("Bits", 2, 8, 4, v => v + " bits", v => { state.bits = v; best = drawCurve(); update(); })),
    plot.svg, read, curve.svg,
    el("p", { class: "qfig-read" }, "Solid: the sum. Dashed: rounding. Dotted: clipping."));
  update();
});
