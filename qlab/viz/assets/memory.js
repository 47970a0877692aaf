// Does this model fit on that device?
qlab.define("memory", (root, data) => {
  const { el, svgEl, slider, choice, number, colors } = qlab;
  const state = { model: 5, width: 1, context: 13, kv: 0 };
  const cacheBits = [16, 8, 4];
  const controls = el("div", { class: "qfig-controls" });
  const bar = svgEl("svg", { viewBox: "0 0 640 56", role: "img", "aria-label": "Memory of weights and cache" });
  const read = qlab.readout();
  const list = el("p", { class: "qfig-read" });
  const update = () => {
    const [name, billions, layers, perToken] = data.models[state.model];
    const [, bits] = data.widths[state.width];
    const tokens = 2 ** state.context;
    const weights = billions * bits / 8;
    const cache = layers * perToken * tokens * cacheBits[state.kv] / 8 / 1e9;
    const total = weights + cache;
    const wide = 640 * weights / total;
    bar.replaceChildren(
      svgEl("rect", { x: 0, y: 2, width: wide, height: 26, fill: colors[0] }),
      svgEl("rect", { x: wide, y: 2, width: 640 - wide, height: 26, fill: colors[4] }),
      svgEl("text", { x: 0, y: 48 }, `weights ${number(weights)} GB`),
      svgEl("text", { x: 640, y: 48, "text-anchor": "end" }, `KV cache ${number(cache)} GB`));
    read.replaceChildren(`${name}: ${number(billions)} billion weights at ${bits} bits are ${number(weights)} GB; `
      + `${tokens.toLocaleString("en")} tokens of cache at ${cacheBits[state.kv]} bits are ${number(cache)} GB. Together `,
      el("strong", {}, `${number(total)} GB`), ".");
    list.textContent = data.devices.map(([device, gb]) =>
      `${total <= gb * data.margin ? "\u2713" : "\u2717"} ${device}`).join("   ");
  };
  controls.append(
    choice("Model", data.models.map(m => m[0]), state.model, v => { state.model = v; update(); }),
    choice("Bits of a weight", data.widths.map(w => w[0]), state.width, v => { state.width = v; update(); }),
    slider("Context", 9, 17, state.context, v => (2 ** v).toLocaleString("en") + " tokens",
      v => { state.context = v; update(); }),
    choice("Bits of the cache", cacheBits.map(String), state.kv, v => { state.kv = v; update(); }));
  root.append(controls, bar, read, list);
  update();
});
