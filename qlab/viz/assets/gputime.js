// Predicted time of a product on a GPU against the batch: 16 bits, and fewer.
qlab.define("gputime", (root, data) => {
  const { el, slider, choice, number, colors, path } = qlab;
  const state = { ...data.start };
  const limits = ["memory", "the matrix units", "decoding"];
  // [seconds, which limit] ; the same three bounds as qlab.viz.gpu_time.seconds.
  const predict = (gpu, matrix, batch, bits, decoding) => {
    const [, bandwidth, peak, , , instructions] = data.gpus[gpu], [, rows, inputs] = data.matrices[matrix];
    const weights = rows * inputs;
    const bounds = [(weights * bits / 8 + 2 * batch * (rows + inputs)) / bandwidth,
                    2 * batch * weights / peak, weights * decoding / instructions];
    const worst = Math.max(...bounds);
    return [worst, bounds.indexOf(worst)];
  };
  root.qlabRun = predict; // for tests
  const holder = el("div"), read = qlab.readout();
  const update = () => {
    const { gpu, matrix, weights, decoding, batch } = state;
    const bits = data.weights[weights][1], work = data.decoding[decoding];
    // Eight points from one batch to the next, so that bends lie where they are.
    const top = data.batches.length - 1, fine = Array.from({ length: 8 * top + 1 }, (_, i) => 2 ** (i / 8));
    const first = fine.map(b => predict(gpu, matrix, b, 16, 0)[0] * 1e6);
    const other = fine.map(b => predict(gpu, matrix, b, bits, work)[0] * 1e6);
    const narrow = root.clientWidth && root.clientWidth < 480;
    const plot = qlab.plot({ label: "Predicted microseconds against the number of vectors, logarithmic axes",
      xLabel: "vectors at once", yLabel: "microseconds, predicted",
      xRange: [0.9, data.batches[top] * 1.1],
      yRange: [Math.min(...first, ...other) / 1.5, Math.max(...first, ...other) * 1.5], xLog: true, yLog: true,
      xTicks: data.batches.filter((b, i) => !narrow || i % 2 === 0), width: narrow ? 380 : 640, xFormat: String });
    const points = ys => fine.map((b, i) => [plot.x(b), plot.y(ys[i])]);
    plot.layer.append(path(points(first), { stroke: colors[0] }),
                      path(points(other), { stroke: colors[1], "stroke-dasharray": "7 4" }));
    [[first, colors[0]], [other, colors[1]]].forEach(([ys, fill]) => plot.layer.append(qlab.svgEl("circle",
      { cx: plot.x(data.batches[batch]), cy: plot.y(ys[8 * batch]), r: 6, fill })));
    holder.replaceChildren(plot.svg);
    const m = data.batches[batch], a = predict(gpu, matrix, m, 16, 0), b = predict(gpu, matrix, m, bits, work);
    read.replaceChildren(`${m} vector${m > 1 ? "s" : ""} on ${data.gpus[gpu][0]}: 16 bits ${number(a[0] * 1e6)} µs, limited by ${limits[a[1]]}; `
      + `${number(bits, 4)} bits ${number(b[0] * 1e6)} µs, limited by ${limits[b[1]]}. Predicted: `,
      el("strong", {}, `${number(a[0] / b[0])} times as fast`), ".");
  };
  const key = el("p", { class: "qfig-read" });
  [["16 bits", colors[0], ""], ["the weights chosen", colors[1], "4 2"]].forEach(([text, stroke, dash], i) => {
    const mark = qlab.svgEl("svg", { viewBox: "0 0 22 10", style: "display:inline-block;width:22px;height:10px", "aria-hidden": "true" });
    mark.append(path([[0, 5], [22, 5]], { stroke, "stroke-dasharray": dash }));
    key.append(i ? "  " : "", mark, " " + text);
  });
  root.append(el("div", { class: "qfig-controls" },
    slider("Vectors", 0, data.batches.length - 1, state.batch, v => String(data.batches[v]), v => { state.batch = v; update(); }),
    choice("GPU", data.gpus.map(g => g[0]), state.gpu, v => { state.gpu = v; update(); }),
    choice("Matrix", data.matrices.map(m => m[0]), state.matrix, v => { state.matrix = v; update(); }),
    choice("Weights", data.weights.map(w => w[0]), state.weights, v => { state.weights = v; update(); }),
    choice("Decoding a weight takes", data.decoding.map(d => d ? `${d} instructions` : "nothing"), state.decoding,
      v => { state.decoding = v; update(); })),
  key, holder, read);
  update();
});
