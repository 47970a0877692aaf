// The roofline of a chosen machine: weights of few bits and of 16, predicted.
qlab.define("rooflinemachines", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const state = { ...data.start };
  // As qlab.kernels.roofline: [seconds, operations a byte, roof, whether memory is the limit].
  const predict = (m, s, k, tokens) => {
    const [, bandwidth, floats, integers, size] = data.machines[m], [, rows, inputs] = data.matrices[k];
    const [, bits, whole, extra] = data.schemes[s], roof = whole ? integers : floats;
    const bytes = rows * inputs * (bits / 8 + extra) + tokens * (rows + inputs) * size;
    const work = 2 * rows * inputs * tokens, read = bytes / bandwidth, compute = work / roof;
    return [Math.max(read, compute), work / bytes, roof, read >= compute];
  };
  const gain = (m, s, k, tokens) => predict(m, 0, k, tokens)[0] / predict(m, s, k, tokens)[0];
  // The largest batch that still gains; 0: none, null: any.
  const last = (m, s, k) => {
    if (gain(m, s, k, 1) < data.gain) return 0;
    let low = 1, high = 65536;
    if (gain(m, s, k, high) >= data.gain) return null;
    while (high - low > 1) {
      const middle = Math.floor((low + high) / 2);
      if (gain(m, s, k, middle) >= data.gain) low = middle; else high = middle;
    }
    return low;
  };
  root.qlabRun = (m, s, k, tokens) => [predict(m, s, k, tokens)[0], gain(m, s, k, tokens), last(m, s, k)]; // for tests
  const time = t => t >= 1e-3 ? `${number(t * 1e3)} ms` : `${number(t * 1e6)} µs`;
  const holder = el("div"), read = qlab.readout();
  const update = () => {
    const { machine, scheme, matrix } = state, tokens = data.batches[state.batch];
    const [name, bandwidth, floats, integers] = data.machines[machine];
    const narrow = root.clientWidth && root.clientWidth < 480;
    const xRange = [0.2, 20000], roof = Math.max(floats, integers);
    const plot = qlab.plot({ label: `Roofline of ${name}, logarithmic axes`, xLabel: "operations a byte",
      yLabel: "operations a second", xRange, yRange: [bandwidth * xRange[0], roof * 3], xLog: true, yLog: true,
      width: narrow ? 380 : 640, yFormat: v => v.toExponential(0), xFormat: v => String(Number(v.toPrecision(2))) });
    const { x, y, layer } = plot;
    const line = (top, attributes) => layer.append(path([[x(top / bandwidth), y(top)], [x(xRange[1]), y(top)]], attributes));
    layer.append(path([[x(xRange[0]), y(bandwidth * xRange[0])], [x(roof / bandwidth), y(roof)]], { stroke: colors[0] }));
    line(floats, { stroke: colors[0] });
    line(integers, { stroke: colors[0], "stroke-dasharray": "7 4" });
    const words = (top, text) => layer.append(svgEl("text", { x: x(xRange[1]) - 4, y: y(top) - 6, "text-anchor": "end" }, text));
    words(floats, "floats");
    words(integers, "int8");
    if (machine === 0)
      for (const p of data.points) {
        const [a, b] = [x(p.intensity), y(p.performance)];
        if (!isFinite(b) || p.performance < bandwidth * xRange[0]) continue;
        const cross = path([[a - 4, b - 4], [a + 4, b + 4]], { stroke: colors[3] });
        const other = path([[a - 4, b + 4], [a + 4, b - 4]], { stroke: colors[3] });
        cross.append(svgEl("title", {}, `${p.label}: measured`));
        layer.append(cross, other);
      }
    const mine = predict(machine, scheme, matrix, tokens), plain = predict(machine, 0, matrix, tokens);
    const speed = p => Math.min(p[2], p[1] * bandwidth);
    layer.append(svgEl("circle", { cx: x(Math.min(plain[1], xRange[1])), cy: y(speed(plain)), r: 9, fill: "none", "stroke-width": 3, stroke: colors[2] }));
    layer.append(svgEl("circle", { cx: x(Math.min(mine[1], xRange[1])), cy: y(speed(mine)), r: 5, fill: colors[1] }));
    holder.replaceChildren(plot.svg);
    const far = last(machine, scheme, matrix);
    const until = scheme === 0 ? "" : far === null ? " It gains with any number of vectors."
      : far === 0 ? ` It never gains ${Math.round((data.gain - 1) * 100)} percent.`
      : ` It gains ${Math.round((data.gain - 1) * 100)} percent or more up to ${far} vector${far > 1 ? "s" : ""}.`;
    read.replaceChildren(`${name}, ${tokens} vector${tokens > 1 ? "s" : ""}, ${data.schemes[scheme][0]}: ${number(mine[1])} operations a byte, `
      + `at least ${time(mine[0])}, waiting for ${mine[3] ? "memory" : "arithmetic"}; 16 bits: ${time(plain[0])}, waiting for ${plain[3] ? "memory" : "arithmetic"}. `,
      el("strong", {}, `${number(plain[0] / mine[0])} times as fast`), "." + until);
  };
  const key = el("p", { class: "qfig-read" });
  const mark = (draw, text, first) => {
    const svg = svgEl("svg", { viewBox: "0 0 20 20", style: "display:inline-block;width:20px;height:20px;vertical-align:middle", "aria-hidden": "true" });
    svg.append(...draw);
    key.append(first ? "" : "  ", svg, " " + text);
  };
  mark([svgEl("circle", { cx: 10, cy: 10, r: 5, fill: colors[1] })], "the weights chosen", true);
  mark([svgEl("circle", { cx: 10, cy: 10, r: 8, fill: "none", "stroke-width": 3, stroke: colors[2] })], "16 bits");
  if (data.points.length)
    mark([path([[6, 6], [14, 14]], { stroke: colors[3] }), path([[6, 14], [14, 6]], { stroke: colors[3] })], "measured here");
  root.append(el("div", { class: "qfig-controls" },
    slider("Vectors at once", 0, data.batches.length - 1, state.batch, v => String(data.batches[v]), v => { state.batch = v; update(); }),
    choice("Machine", data.machines.map(m => m[0]), state.machine, v => { state.machine = v; update(); }),
    choice("Weights", data.schemes.map(s => s[0]), state.scheme, v => { state.scheme = v; update(); }),
    choice("Matrix", data.matrices.map(m => m[0]), state.matrix, v => { state.matrix = v; update(); })),
  key, holder, read);
  update();
});
