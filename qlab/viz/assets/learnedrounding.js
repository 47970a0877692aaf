// Signed gradient descent step by step: the error of the layer, and the codes that have changed.
qlab.define("learnedrounding", (root, data) => {
  const { el, svgEl, slider, choice, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const state = { run: data.start, step: 0 };
  const read = qlab.readout(), controls = el("div", { class: "qfig-controls" });
  const top = Math.max(...data.runs.flatMap(r => r.loss)) * 1.05;
  const plot = qlab.plot({ label: "Error of the output against the step", xLabel: "step", yLabel: "error (nearest = 1)",
    xRange: [0, data.steps], yRange: [0, top], width, height: 280 });
  const lines = svgEl("g");
  plot.svg.insertBefore(lines, plot.layer);
  const drawLines = () => lines.replaceChildren(...data.runs.map((r, i) =>
    path(r.loss.map((v, t) => [plot.x(t), plot.y(v)]),
      { stroke: colors[i], "stroke-width": i === state.run ? 2.4 : 1, "stroke-opacity": i === state.run ? 1 : 0.4 })));
  const update = () => {
    const run = data.runs[state.run], t = state.step;
    const best = Math.min(...run.loss.slice(0, t + 1));
    plot.clear();
    plot.layer.append(svgEl("line", { x1: plot.x(t), x2: plot.x(t), y1: 12, y2: 232, stroke: "currentColor", "stroke-dasharray": "4 3" }),
      svgEl("circle", { cx: plot.x(t), cy: plot.y(run.loss[t]), r: 5.5, fill: colors[state.run] }));
    read.replaceChildren(`Step ${t}: the error is `, el("strong", {}, (100 * run.loss[t]).toFixed(1) + "%"),
      " of that of the nearest codes, the best so far ", el("strong", {}, (100 * best).toFixed(1) + "%"),
      "; ", el("strong", {}, (100 * run.changed[t]).toFixed(1) + "%"), " of the codes are not the nearest ones.");
  };
  controls.append(
    choice("First step", data.runs.map(r => r.name), state.run, v => { state.run = v; drawLines(); update(); }),
    slider("Step", 0, data.steps - 1, 0, v => String(v), v => { state.step = v; update(); }));
  root.append(controls, plot.svg, read);
  drawLines();
  update();
});
