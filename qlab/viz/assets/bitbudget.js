// Bit allocation: which layer gets how many bits within a budget, and what the model then loses.
qlab.define("bitbudget", (root, data) => {
  const { el, svgEl, slider, number, colors, path } = qlab;
  const width = root.clientWidth && root.clientWidth < 480 ? 380 : 640;
  const state = { point: data.start };
  const read = qlab.readout();
  const all = data.points.flatMap(p => [p.predicted, p.measured]).concat(data.uniform.map(u => u.measured));
  const bytes = data.points.map(p => p.nbytes).concat(data.uniform.map(u => u.nbytes)).map(b => b / 1e6);
  const room = (Math.max(...bytes) - Math.min(...bytes)) * 0.04 || 0.1;
  const plot = qlab.plot({ label: "Divergence against size", xLabel: "size of the layers (MB)", yLabel: "KL divergence (nats)",
    xRange: [Math.min(...bytes) - room, Math.max(...bytes) + room],
    yRange: [Math.min(...all) / 1.3, Math.max(...all) * 1.3], yLog: true, width, height: 300 });
  [["predicted", colors[0], "6 4"], ["measured", colors[1], ""]].forEach(([key, stroke, dashes]) =>
    plot.svg.insertBefore(path(data.points.map(p => [plot.x(p.nbytes / 1e6), plot.y(p[key])]),
      { stroke, "stroke-dasharray": dashes }), plot.layer));
  data.uniform.forEach(u => {
    const x = plot.x(u.nbytes / 1e6), y = plot.y(u.measured), mark = svgEl("path",
      { d: `M${x - 6} ${y}L${x} ${y - 6}L${x + 6} ${y}L${x} ${y + 6}Z`, fill: colors[2], "data-uniform": u.scheme });
    mark.append(svgEl("title", {}, `all layers ${u.scheme}`));
    plot.svg.insertBefore(mark, plot.layer);
  });
  // One cell a layer: a darker one has more bits, and the number says how many.
  const side = 66, cell = (width - side - 14) / data.columns.length, high = 30, top = 24;
  const grid = svgEl("svg", { viewBox: `0 0 ${width} ${top + high * data.rows.length + 6}`, role: "img" });
  data.columns.forEach((name, j) => grid.append(svgEl("text",
    { x: side + (j + 0.5) * cell, y: 15, "text-anchor": "middle" }, name)));
  data.rows.forEach((name, i) => grid.append(svgEl("text",
    { x: side - 7, y: top + (i + 0.5) * high + 4, "text-anchor": "end" }, name)));
  const boxes = data.layers.map(layer => {
    const x = side + layer.column * cell, y = top + layer.row * high;
    const box = svgEl("rect", { x: x + 1, y: y + 1, width: cell - 2, height: high - 2, rx: 3, fill: colors[0] });
    const text = svgEl("text", { x: x + cell / 2, y: y + high / 2 + 5, "text-anchor": "middle", "font-weight": 600 });
    grid.append(box, text);
    return { box, text };
  });
  const most = Math.max(...data.schemes.map(s => s.bits)), least = Math.min(...data.schemes.map(s => s.bits));
  const update = () => {
    const point = data.points[state.point];
    plot.clear();
    const x = plot.x(point.nbytes / 1e6);
    plot.layer.append(svgEl("line", { x1: x, x2: x, y1: 12, y2: 252, stroke: "currentColor", "stroke-dasharray": "4 3" }));
    [["predicted", colors[0]], ["measured", colors[1]]].forEach(([key, fill]) =>
      plot.layer.append(svgEl("circle", { cx: x, cy: plot.y(point[key]), r: 5.5, fill })));
    const count = data.schemes.map(() => 0);
    data.layers.forEach((layer, i) => {
      const scheme = data.schemes[point.schemes[i]];
      count[point.schemes[i]]++;
      boxes[i].box.setAttribute("fill-opacity", most === least ? 0.5 : 0.06 + 0.5 * (scheme.bits - least) / (most - least));
      boxes[i].text.textContent = String(scheme.bits);
    });
    const words = data.schemes.map((s, i) => [s, count[i]]).filter(([, n]) => n)
      .map(([s, n]) => `${n} in ${s.name}`).join(", ");
    grid.setAttribute("aria-label", `Bits of each layer: ${words}`);
    read.replaceChildren("Of ", String(data.layers.length), " layers ", el("strong", {}, words), ", together ",
      el("strong", {}, (point.nbytes / 1e6).toFixed(2) + " MB"), ". KL predicted ", el("strong", {}, number(point.predicted)),
      ", measured ", el("strong", {}, number(point.measured)), " nats.");
  };
  const key = el("p", { class: "qfig-read" });
  [["predicted: the sum over layers; ", colors[0], "6 4"], ["measured; ", colors[1], ""]].forEach(([text, stroke, dashes]) => {
    const line = svgEl("svg", { viewBox: "0 0 26 10", style: "display:inline-block;width:26px;height:10px", "aria-hidden": "true" });
    line.append(svgEl("line", { x1: 1, x2: 25, y1: 5, y2: 5, stroke, "stroke-width": 3, "stroke-dasharray": dashes }));
    key.append(line, " " + text);
  });
  const diamond = svgEl("svg", { viewBox: "0 0 14 12", style: "display:inline-block;width:14px;height:12px", "aria-hidden": "true" });
  diamond.append(svgEl("path", { d: "M1 6L7 0L13 6L7 12Z", fill: colors[2] }));
  key.append(diamond, " the same bits everywhere, measured");
  root.append(el("div", { class: "qfig-controls" },
    slider("Budget", 0, data.points.length - 1, state.point, v => (data.points[v].nbytes / 1e6).toFixed(2) + " MB",
      v => { state.point = v; update(); })), grid, plot.svg, key, read);
  update();
});
