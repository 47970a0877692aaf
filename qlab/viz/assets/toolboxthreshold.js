// LLM.int8()'s threshold: perplexity above, share of columns in floating point below, one slider.
qlab.define("toolboxthreshold", (root, data) => {
  const { el, svgEl, slider, choice, number, colors, plot, path } = qlab;
  const t = data.thresholds;
  const state = { model: data.models.length - 1, at: Math.max(0, t.findIndex(v => v >= 6)) };
  const pictures = el("div"), read = qlab.readout();
  root.qlabRun = (model, at) => [data.models[model].perplexity[at], data.models[model].share[at]]; // for tests
  const ticks = t.filter((v, i) => i === 0 || i === t.length - 1 || i % 2 === 0);
  const draw = () => {
    const m = data.models[state.model], all = [...m.perplexity, m.whole];
    const low = Math.min(...all), high = Math.max(...all), room = Math.max(0.15 * (high - low), 0.01 * low);
    const common = { xLabel: "threshold", xRange: [t[0], t[t.length - 1]], xLog: true, xTicks: ticks, height: 230 };
    const top = plot({ ...common, label: "Perplexity against the threshold", yLabel: "perplexity", yRange: [low - room, high + room] });
    const below = plot({ ...common, label: "Share of columns in floating point against the threshold",
      yLabel: "columns apart (%)", yRange: [0, Math.max(1, 110 * Math.max(...m.share))] });
    const line = (p, values, color) => {
      p.layer.append(path(values.map((v, i) => [p.x(t[i]), p.y(v)]), { stroke: color }));
      p.layer.append(svgEl("line", { x1: p.x(t[state.at]), x2: p.x(t[state.at]), y1: 12, y2: 182, stroke: "currentColor", "stroke-opacity": 0.5 }));
      p.layer.append(svgEl("circle", { cx: p.x(t[state.at]), cy: p.y(values[state.at]), r: 6, fill: color }));
    };
    top.layer.append(svgEl("line", { x1: top.x(t[0]), x2: top.x(t[t.length - 1]), y1: top.y(m.whole), y2: top.y(m.whole),
      stroke: "currentColor", "stroke-dasharray": "5 4" }));
    line(top, m.perplexity, colors[0]);
    line(below, m.share.map(v => 100 * v), colors[1]);
    pictures.replaceChildren(top.svg, below.svg);
    const p = m.perplexity[state.at];
    read.replaceChildren("With threshold ", el("strong", {}, number(t[state.at])), ": perplexity ", el("strong", {}, number(p, 4)),
      ` (${p >= m.whole ? "+" : "−"}${Math.abs(100 * (p / m.whole - 1)).toFixed(1)}%), and `,
      el("strong", {}, (100 * m.share[state.at]).toFixed(2) + "%"), " of the columns are multiplied in floating point.");
  };
  root.append(el("div", { class: "qfig-controls" },
    choice("Model", data.models.map(m => m.name), state.model, v => { state.model = v; draw(); }),
    slider("Threshold", 0, t.length - 1, state.at, i => number(t[i]), v => { state.at = v; draw(); })), pictures, read);
  draw();
});
