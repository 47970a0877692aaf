// Bytes of weights and cache for several models.
qlab.define("kvcache", (root, data) => {
  const { el, svgEl, slider, choice, number, colors } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const width = narrow ? 380 : 640, left = narrow ? 128 : 150, right = 16, line = 34;
  const state = { tokens: data.start[0], model: data.start[1], cache: 0, weights: 0 };
  const height = data.models.length * line + 46;
  const low = 0.01, high = 3000;
  const x = v => left + (Math.log10(Math.min(Math.max(v, low), high) / low) / Math.log10(high / low)) * (width - left - right);
  const sizes = (model, tokens, cacheBits, weightBits) => {
    const [, billions, layers, numbers] = data.models[model];
    const token = layers * numbers * cacheBits / 8 / 1e9, weights = billions * weightBits / 8;
    return { cache: token * tokens, weights, equal: weights / token };
  };
  const now = model => sizes(model, data.tokens[state.tokens], data.caches[state.cache][1], data.weights[state.weights][1]);
  root.qlabRun = sizes; // for tests
  const svg = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": "Gigabytes of weights and cache of each model" });
  const layer = svgEl("g"), read = qlab.readout();
  for (const t of [0.01, 0.1, 1, 10, 100, 1000]) {
    svg.append(svgEl("line", { class: "grid", x1: x(t), x2: x(t), y1: 4, y2: height - 42 }));
    svg.append(svgEl("text", { x: x(t), y: height - 24, "text-anchor": "middle" }, String(t)));
  }
  svg.append(svgEl("text", { x: (left + width - right) / 2, y: height - 5, "text-anchor": "middle" }, "gigabytes"), layer);
  const update = () => {
    layer.replaceChildren();
    data.models.forEach(([name], i) => {
      const y = 6 + i * line, v = now(i);
      layer.append(svgEl("text", { x: left - 8, y: y + 17, "text-anchor": "end",
        "font-weight": i === state.model ? "700" : "400" }, name.replace(" (671B)", "")));
      [[v.weights, colors[0]], [v.cache, colors[1]]].forEach(([value, fill], k) => layer.append(svgEl("rect", {
        x: left, y: y + k * 12, width: Math.max(x(value) - left, 1), height: 11, fill })));
    });
    const v = now(state.model), name = data.models[state.model][0];
    read.replaceChildren(`${name} at ${data.tokens[state.tokens].toLocaleString("en")} tokens: the cache takes `,
      el("strong", {}, number(v.cache) + " GB"), ", the weights ", el("strong", {}, number(v.weights) + " GB"),
      ". Both are equal at ", el("strong", {}, Math.round(v.equal).toLocaleString("en") + " tokens"), ".");
  };
  const key = el("p", { class: "qfig-read" });
  [["weights", colors[0]], ["cache of one sequence", colors[1]]].forEach(([text, fill], i) => {
    const mark = svgEl("svg", { viewBox: "0 0 14 10", style: "display:inline-block;width:14px;height:10px", "aria-hidden": "true" });
    mark.append(svgEl("rect", { width: 14, height: 10, fill }));
    key.append(i ? "  " : "", mark, " " + text);
  });
  root.append(el("div", { class: "qfig-controls" },
    slider("Tokens", 0, data.tokens.length - 1, state.tokens, v => data.tokens[v].toLocaleString("en"), v => { state.tokens = v; update(); }),
    choice("Bits of the cache", data.caches.map(c => c[0]), 0, v => { state.cache = v; update(); }),
    choice("Bits of the weights", data.weights.map(c => c[0]), 0, v => { state.weights = v; update(); }),
    choice("Model", data.models.map(m => m[0]), state.model, v => { state.model = v; update(); })),
  key, svg, read);
  update();
});
