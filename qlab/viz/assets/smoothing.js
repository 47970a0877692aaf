// SmoothQuant: what alpha does to the range of each feature, and to the error of the output.
qlab.define("smoothing", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const state = { layer: 0, alpha: data.alphas.indexOf(0.5) };
  const plots = el("div"), read = qlab.readout();
  // s = x^a / w^(1-a): the activations keep (x w)^(1-a), the weights get (x w)^a.
  const scale = (x, w, a) => x === 0 || w === 0 ? 1 : Math.max(x ** a / w ** (1 - a), 1e-5);
  const ranges = (layer, a) => {
    const s = layer.x.map((x, j) => scale(x, layer.w[j], a));
    return { x: layer.x.map((x, j) => x / s[j]), w: layer.w.map((w, j) => w * s[j]) };
  };
  root.qlabRun = (layer, a) => ranges(data.layers[layer], a); // for tests
  const spread = values => {
    const sorted = [...values].sort((a, b) => a - b);
    return sorted[sorted.length - 1] / sorted[Math.floor((sorted.length - 1) / 2)];
  };
  let features, errors, floor, order;
  const draw = () => {
    const layer = data.layers[state.layer], n = layer.x.length;
    // Axes that hold every alpha, so that what moves is the range and not the axis.
    const all = data.alphas.flatMap(a => { const r = ranges(layer, a); return [...r.x, ...r.w]; })
      .concat(layer.x, layer.w).filter(v => v > 0);
    const high = Math.max(...all) * 1.3, low = Math.max(Math.min(...all), high / 1e6);
    floor = low;
    order = layer.x.map((_, j) => j).sort((a, b) => layer.x[b] - layer.x[a]);
    features = qlab.plot({ label: "Largest magnitude of each feature", xLabel: "features, the farthest of the activations first", yLabel: "largest magnitude",
      xRange: [0, n - 1], yRange: [low, high], yLog: true, width, height: 280 });
    const decibels = data.kinds.flatMap(k => [...layer.errors[k], layer.plain[k]]);
    const bottom = Math.min(...decibels), top = Math.max(...decibels), room = (top - bottom) * 0.08 + 0.5;
    errors = qlab.plot({ label: "Error of the output against alpha", xLabel: "alpha", yLabel: "SQNR of the output (dB)",
      xRange: [0, 1], yRange: [bottom - room, top + room], width, height: 240 });
    data.kinds.forEach((kind, i) => {
      const color = colors[2 + i];
      errors.svg.insertBefore(path(data.alphas.map((a, k) => [errors.x(a), errors.y(layer.errors[kind][k])]),
        { stroke: color }), errors.layer);
      errors.svg.insertBefore(path([[errors.x(0), errors.y(layer.plain[kind])], [errors.x(1), errors.y(layer.plain[kind])]],
        { stroke: color, "stroke-dasharray": "6 4", "stroke-width": 1.4 }), errors.layer);
    });
    plots.replaceChildren(features.svg, errors.svg);
  };
  const update = () => {
    const layer = data.layers[state.layer], alpha = data.alphas[state.alpha], r = ranges(layer, alpha);
    features.clear();
    errors.clear();
    // The wide line below stays visible where both lie on each other.
    [[r.x, colors[0], 4], [r.w, colors[1], 1.3]].forEach(([values, stroke, thick]) => features.layer.append(path(
      order.map((j, i) => [features.x(i), features.y(Math.max(values[j], floor))]), { stroke, "stroke-width": thick })));
    errors.layer.append(svgEl("line", { x1: errors.x(alpha), x2: errors.x(alpha), y1: 12, y2: 192,
      stroke: "currentColor", "stroke-dasharray": "4 3" }));
    data.kinds.forEach((kind, i) => errors.layer.append(svgEl("circle", { cx: errors.x(alpha),
      cy: errors.y(layer.errors[kind][state.alpha]), r: 5.5, fill: colors[2 + i] })));
    read.replaceChildren(`Alpha ${alpha.toFixed(2)}: the farthest feature of the activations is `,
      el("strong", {}, number(spread(r.x)) + " times"), ` the median one (before: ${number(spread(layer.x))}), that of the weights `,
      el("strong", {}, number(spread(r.w)) + " times"), ` (before: ${number(spread(layer.w))}). SQNR of the output: `,
      ...data.kinds.flatMap((kind, i) => [i ? "; " : "", `${kind} `,
        el("strong", {}, layer.errors[kind][state.alpha].toFixed(1) + " dB"), ` (without smoothing ${layer.plain[kind].toFixed(1)})`]), ".");
  };
  const key = el("p", { class: "qfig-read" });
  [["activations", colors[0]], ["weights", colors[1]], ...data.kinds.map((kind, i) => [kind, colors[2 + i]])].forEach(([text, color], i) => {
    const line = svgEl("svg", { viewBox: "0 0 26 10", style: "display:inline-block;width:26px;height:10px", "aria-hidden": "true" });
    line.append(svgEl("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke: color, "stroke-width": 3 }));
    key.append(i ? "  " : "", line, " " + text + (i === 1 ? ";" : ""));
  });
  root.append(el("div", { class: "qfig-controls" },
    choice("Layer", data.layers.map(l => l.name), 0, v => { state.layer = v; draw(); update(); }),
    slider("Alpha", 0, data.alphas.length - 1, state.alpha, v => data.alphas[v].toFixed(2), v => { state.alpha = v; update(); })),
  plots, key, read);
  draw();
  update();
});
