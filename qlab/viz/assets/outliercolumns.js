// LLM.int8(): which columns a threshold takes apart, and what that does to the error.
qlab.define("outliercolumns", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const state = { layer: 0, threshold: data.layers[0].six };
  const plots = el("div"), read = qlab.readout();
  let reach, errors, sorted;
  const draw = () => {
    const layer = data.layers[state.layer];
    sorted = [...layer.absmax].sort((a, b) => b - a);
    const t = layer.thresholds, last = t[t.length - 1];
    const low = Math.min(t[0], Math.max(sorted[sorted.length - 1], sorted[0] / 1e4)) / 1.2;
    reach = qlab.plot({ label: "Largest magnitude of the features, sorted", xLabel: "features, the farthest first",
      yLabel: "largest magnitude", xRange: [0, sorted.length], yRange: [low, Math.max(last, sorted[0]) * 1.2], yLog: true, width, height: 260 });
    const bottom = Math.min(...layer.errors), top = Math.max(...layer.errors), room = (top - bottom) * 0.08 + 0.5;
    errors = qlab.plot({ label: "Error of the output against the threshold", xLabel: "threshold", yLabel: "SQNR of the output (dB)",
      xRange: [t[0], last], xLog: true, yRange: [bottom - room, top + room], width, height: 230 });
    errors.svg.insertBefore(path(t.map((v, i) => [errors.x(v), errors.y(layer.errors[i])]), { stroke: colors[2] }), errors.layer);
    plots.replaceChildren(reach.svg, errors.svg);
  };
  const update = () => {
    const layer = data.layers[state.layer], i = state.threshold, t = layer.thresholds[i], apart = layer.columns[i];
    const bottom = 212, step = reach.x(1) - reach.x(0);
    reach.clear();
    errors.clear();
    sorted.forEach((v, j) => reach.layer.append(svgEl("rect", { x: reach.x(j) + step * 0.1, width: Math.max(step * 0.8, 0.6),
      y: Math.min(reach.y(Math.max(v, 1e-12)), bottom), height: Math.max(bottom - reach.y(Math.max(v, 1e-12)), 0),
      fill: j < apart ? colors[1] : colors[0] })));
    reach.layer.append(svgEl("line", { x1: reach.x(0), x2: reach.x(sorted.length), y1: reach.y(t), y2: reach.y(t),
      stroke: "currentColor", "stroke-width": 2, "stroke-dasharray": "5 4" }));
    errors.layer.append(svgEl("line", { x1: errors.x(t), x2: errors.x(t), y1: 12, y2: 182, stroke: "currentColor", "stroke-dasharray": "4 3" }),
      svgEl("circle", { cx: errors.x(t), cy: errors.y(layer.errors[i]), r: 5.5, fill: colors[2] }));
    const left = sorted.filter((v, j) => j >= apart)[0];
    read.replaceChildren(`Threshold ${number(t)}: `, el("strong", {}, `${apart} of ${sorted.length}`),
      ` columns in high precision (${number(100 * apart / sorted.length)}%, orange), the others int8`,
      left === undefined ? "" : ` with magnitudes up to ${number(left)}`, ". SQNR of the output: ",
      el("strong", {}, layer.errors[i].toFixed(1) + " dB"), ` (all columns in int8: ${layer.errors[layer.errors.length - 1].toFixed(1)}).`);
  };
  let knob;
  const remake = () => {
    const layer = data.layers[state.layer];
    const made = slider("Threshold", 0, layer.thresholds.length - 1, state.threshold, v => number(layer.thresholds[v]),
      v => { state.threshold = v; update(); });
    if (knob) knob.replaceWith(made);
    knob = made;
  };
  remake();
  root.append(el("div", { class: "qfig-controls" },
    choice("Layer", data.layers.map(l => l.name), 0, v => {
      state.layer = v; state.threshold = data.layers[v].six; remake(); draw(); update(); }), knob),
  plots, read);
  draw();
  update();
});
