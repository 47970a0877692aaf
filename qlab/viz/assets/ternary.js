// Which weights become -1, 0 and 1, as the scale grows.
qlab.define("ternary", (root, data) => {
  const { el, svgEl, slider, colors, number } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const width = narrow ? 380 : 640;
  const state = { step: data.start };
  const read = qlab.readout(), last = data.edges.length - 1;
  const fills = { "-1": colors[1], "0": colors[5], "1": colors[0] };
  const code = (v, gamma) => Math.max(-1, Math.min(1, Math.round(v / gamma)));
  const plot = qlab.plot({ label: "Histogram of the weights, colored by their code",
    xLabel: "weight (mean magnitudes)", yLabel: "share (%)", xRange: [data.edges[0], data.edges[last]],
    yRange: [0, 105 * Math.max(...data.counts)], width, height: 260 });
  const legend = el("p", { class: "qfig-read" });
  for (const [name, fill] of [-1, 0, 1].map(c => [String(c), fills[c]])) {
    const box = el("span", { "aria-hidden": "true",
      style: `display:inline-block;width:0.8em;height:0.8em;margin-right:0.3em;background:${fill}` });
    legend.append(el("span", { style: "margin-right:1.2em;white-space:nowrap" }, box, `code ${name}`));
  }
  const update = () => {
    const gamma = data.factors[state.step], step = data.steps[state.step];
    plot.clear();
    // A bin that the threshold divides is drawn in two parts.
    const cuts = [-gamma / 2, gamma / 2];
    data.counts.forEach((share, i) => {
      const inner = cuts.filter(c => c > data.edges[i] && c < data.edges[i + 1]);
      const edges = [data.edges[i], ...inner, data.edges[i + 1]];
      for (let k = 0; k + 1 < edges.length; k++) {
        const top = plot.y(100 * share), a = plot.x(edges[k]), b = plot.x(edges[k + 1]);
        plot.layer.append(svgEl("rect", { x: a, y: top, width: Math.max(b - a - 0.4, 0.2),
          height: Math.max(plot.y(0) - top, 0), fill: fills[code((edges[k] + edges[k + 1]) / 2, gamma)] }));
      }
    });
    for (const at of [-gamma, gamma].filter(v => Math.abs(v) <= data.edges[last]))
      plot.layer.append(svgEl("line", { class: "axis", x1: plot.x(at), x2: plot.x(at), y1: plot.y(0),
        y2: 14, "stroke-dasharray": "5 4" }));
    const zeros = (100 * step.shares[1]).toFixed(0) + "%";
    read.replaceChildren("γ is ", el("strong", {}, number(gamma)), " mean magnitudes (dashed). Zeros: ",
      el("strong", {}, zeros), ". Entropy of the codes: ", el("strong", {}, step.entropy.toFixed(2)),
      " bits. SQNR: ", el("strong", {}, step.sqnr.toFixed(1) + " dB"), " with the scale γ, ",
      el("strong", {}, step.best.toFixed(1) + " dB"), " with the best scale for these codes.");
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("γ (mean magnitudes)", 0, data.factors.length - 1, state.step, v => String(data.factors[v]),
      v => { state.step = v; update(); })),
  legend, plot.svg, read);
  update();
});
