// Clipping, measured and computed: a histogram, a range, and three curves of the error.
qlab.define("cliptheory", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const state = { tensor: 0, bits: data.bits.indexOf(4), clip: 0 };
  const plots = el("div"), read = qlab.readout();
  const sums = c => c.rounding.map((r, i) => r + c.clipping[i]);
  const least = values => values.indexOf(Math.min(...values));
  // A line with gaps where it would leave the drawing.
  const strokes = (points, attributes) => {
    const runs = [[]];
    for (const p of points) if (p) runs[runs.length - 1].push(p); else if (runs[runs.length - 1].length) runs.push([]);
    return runs.filter(r => r.length > 1).map(r => path(r, attributes));
  };
  const decibels = v => number(-10 * Math.log10(v)) + " dB";
  let mark, sides, x, x2;
  const curves = () => data.tensors[state.tensor].curves[state.bits];
  const draw = () => {
    const t = data.tensors[state.tensor], n = t.density.length, c = curves(), total = sums(c);
    const centers = t.density.map((_, i) => t.view * (2 * (i + 0.5) / n - 1));
    const perBin = 2 * t.view / n, heights = t.density.map(d => d / perBin);
    const shape = { gaussian: v => Math.exp(-v * v / 2) / Math.sqrt(2 * Math.PI),
      laplacian: v => Math.exp(-Math.SQRT2 * Math.abs(v)) / Math.SQRT2 };
    const peak = Math.min(Math.max(...heights), 1.4);
    const hist = qlab.plot({ label: `Histogram of ${t.name}`, yLabel: "density",
      xLabel: `value (standard deviations); the farthest: ${number(t.reach)}`, xRange: [-t.view, t.view], yRange: [0, peak * 1.05], width, height: 220 });
    const up = v => hist.y(Math.min(v, peak * 1.05));
    hist.layer.append(path([[hist.x(-t.view), hist.y(0)], ...centers.map((v, i) => [hist.x(v), up(heights[i])]),
      [hist.x(t.view), hist.y(0)]], { stroke: colors[0], fill: colors[0], "fill-opacity": 0.3, "stroke-width": 1.2 }));
    const fine = Array.from({ length: 401 }, (_, i) => t.view * (i / 200 - 1));
    const density = f => fine.map(v => f(v) <= peak * 1.05 && [hist.x(v), hist.y(f(v))]);
    hist.layer.append(...strokes(density(shape.gaussian), { stroke: colors[1], "stroke-dasharray": "7 4" }),
      ...strokes(density(shape.laplacian), { stroke: colors[2], "stroke-dasharray": "2 4" }));
    sides = svgEl("g");
    hist.layer.append(sides);
    const lowest = Math.min(...total, ...c.gaussian, ...c.laplacian);
    const plot = qlab.plot({ label: "Error against the clipping range", xLabel: "clip (standard deviations)",
      yLabel: "error / variance", xRange: [t.clips[0], t.clips[t.clips.length - 1]], xLog: true,
      yRange: [lowest / 3, 2], yLog: true, yFormat: v => number(v, 1), width, height: 270 });
    const line = (values, color, dash, w = 2) => plot.layer.append(...strokes(
      t.clips.map((k, i) => values[i] >= lowest / 3 && [plot.x(k), plot.y(values[i])]),
      { stroke: color, "stroke-dasharray": dash, "stroke-width": w }));
    line(c.rounding, "currentColor", "1 5", 1.5);
    line(c.clipping, "currentColor", "1 5", 1.5);
    line(c.gaussian, colors[1], "7 4");
    line(c.laplacian, colors[2], "2 4");
    line(total, colors[0], "", 2.6);
    for (const [values, color] of [[c.gaussian, colors[1]], [c.laplacian, colors[2]], [total, colors[0]]]) {
      const i = least(values);
      plot.layer.append(svgEl("circle", { cx: plot.x(t.clips[i]), cy: plot.y(values[i]), r: 5.5, fill: color }));
    }
    mark = svgEl("line", { class: "axis", y1: 12, y2: 222 });
    plot.layer.append(mark);
    x = hist.x; x2 = plot.x;
    plots.replaceChildren(hist.svg, plot.svg);
  };
  const update = () => {
    const t = data.tensors[state.tensor], c = curves(), total = sums(c), i = state.clip, best = least(total);
    const clip = t.clips[i], qmax = 2 ** (data.bits[state.bits] - 1) - 1;
    const seen = v => Math.abs(v) <= t.view * 1.0001;
    sides.replaceChildren(...[-clip, clip].filter(seen).map(v => svgEl("line", { x1: x(v), x2: x(v), y1: 12, y2: 172,
      stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "4 3" })));
    if (qmax <= 40) for (let q = -qmax; q <= qmax; q++) if (seen(q * clip / qmax))
      sides.append(svgEl("line", { x1: x(q * clip / qmax), x2: x(q * clip / qmax), y1: 160, y2: 172, stroke: "currentColor" }));
    mark.setAttribute("x1", x2(clip));
    mark.setAttribute("x2", x2(clip));
    read.replaceChildren(`Clip ${number(clip)} σ: rounding ${number(c.rounding[i])} + clipping ${number(c.clipping[i])} = `,
      el("strong", {}, number(total[i])), ` of the variance (${decibels(total[i])}); a Gaussian promises `
      + `${decibels(c.gaussian[i])}, a Laplacian ${decibels(c.laplacian[i])}. Least: at ${number(t.clips[best])} σ measured, `
      + `${number(t.clips[least(c.gaussian)])} σ for a Gaussian, ${number(t.clips[least(c.laplacian)])} σ for a Laplacian.`);
  };
  const last = data.tensors[0].clips.length - 1;
  state.clip = last;
  const clipText = v => number(data.tensors[state.tensor].clips[v]) + " σ";
  const clipSlider = slider("Clip", 0, last, last, clipText, v => { state.clip = v; update(); });
  const redraw = () => {
    draw();
    clipSlider.querySelector("output").textContent = clipText(state.clip);
    clipSlider.querySelector("input").setAttribute("aria-valuetext", clipText(state.clip));
    update();
  };
  root.append(el("div", { class: "qfig-controls" },
    choice("Tensor", data.tensors.map(t => t.name), 0, v => { state.tensor = v; redraw(); }), clipSlider,
    slider("Bits", data.bits[0], data.bits[data.bits.length - 1], 4, v => v + " bits",
      v => { state.bits = data.bits.indexOf(v); redraw(); })),
  plots, read,
  el("p", { class: "qfig-read" }, "Solid: measured, the sum of rounding and clipping (thin dots). "
    + "Dashed: a Gaussian of the same variance. Dotted: a Laplacian. σ is the standard deviation."));
  redraw();
});
