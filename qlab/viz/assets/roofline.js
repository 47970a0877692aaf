// The roofline of a machine, with measured points and a movable ideal.
qlab.define("roofline", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, path } = qlab;
  const widths = [32, 16, 8, 4, 2];
  const state = { vectors: 0, width: 0 };
  const xs = data.points.map(p => p.intensity), ys = data.points.map(p => p.performance / 1e9);
  const bandwidth = data.bandwidth / 1e9, peak = data.peak / 1e9;
  const xRange = [Math.min(0.25, ...xs) / 1.3, 2000];
  const yRange = [Math.min(...ys, bandwidth * xRange[0]) / 1.6, Math.max(peak, ...ys) * 2];
  const plot = qlab.plot({ label: "Roofline on logarithmic axes", xLabel: "operations a byte",
    yLabel: "billion operations a second", xRange, yRange, xLog: true, yLog: true });
  const { x, y, layer } = plot;
  const ridge = peak / bandwidth;
  layer.append(path([[x(xRange[0]), y(bandwidth * xRange[0])], [x(ridge), y(peak)], [x(xRange[1]), y(peak)]],
    { stroke: colors[0] }));
  layer.append(svgEl("text", { x: x(ridge) + 6, y: y(peak) - 8 }, `roof: ${number(peak)} billion a second`));
  for (const p of data.points) {
    const dot = svgEl("circle", { cx: x(p.intensity), cy: y(p.performance / 1e9), r: 5, fill: colors[1] });
    dot.append(svgEl("title", {}, `${p.label}: ${number(p.performance / 1e9)} billion operations a second`));
    layer.append(dot);
  }
  const ring = svgEl("circle", { r: 8, fill: "none", "stroke-width": 3, stroke: colors[2] });
  layer.append(ring);
  const read = qlab.readout();
  const update = () => {
    const m = 2 ** state.vectors, bits = widths[state.width];
    const intensity = 16 * m / bits;
    const reach = Math.min(peak, intensity * bandwidth);
    ring.setAttribute("cx", x(Math.min(intensity, xRange[1])));
    ring.setAttribute("cy", y(reach));
    read.replaceChildren(`${m} vector${m > 1 ? "s" : ""}, weights of ${bits} bits: ${number(intensity)} operations a byte. At best `,
      el("strong", {}, `${number(reach)} billion operations a second`),
      intensity < ridge ? ": it waits for memory, and fewer bits make it faster."
                        : ": it waits for arithmetic, and fewer bits in memory do not help.");
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Vectors at once", 0, 9, 0, v => String(2 ** v), v => { state.vectors = v; update(); }),
    choice("Bits of a weight", widths.map(String), 0, v => { state.width = v; update(); })), plot.svg, read);
  update();
});
