// Memory of fine-tuning: all weights, LoRA, QLoRA.
qlab.define("finetuning", (root, data) => {
  const { el, svgEl, slider, choice, number, colors } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const width = narrow ? 400 : 640;
  const state = { model: 3, rank: 4, tokens: 11, checkpointing: 0, base: 0, scale: 0 };
  const fills = [colors[0], colors[3], colors[1], colors[4], colors[2]];
  const bars = svgEl("svg", { role: "img" });
  const grid = el("div"), read = qlab.readout();
  // Bytes of each part, in the order of data.parts.
  const count = (way, m) => {
    const full = way === 0, rank = 2 ** state.rank, tokens = 2 ** state.tokens;
    const low = full ? 0 : m.adapter * rank, learn = full ? m.linear + m.rest : low;
    const layer = full ? m.full : m.lora + rank * m.maps;
    const kept = state.checkpointing ? m.layers * m.width + layer : m.layers * layer;
    const bits = way === 2 ? data.bases[state.base][1] : 16;
    return [m.linear * bits / 8 + 2 * m.rest, 2 * low, 2 * learn, 8 * learn,
      tokens * (2 * kept + 4 * m.vocabulary)].map(b => b / 1e9);
  };
  const sum = parts => parts.reduce((a, b) => a + b, 0);
  const fits = gb => (data.devices.find(d => gb <= d[1] * data.margin) || ["more than eight cards"])[0];
  const update = () => {
    const [name, m] = data.models[state.model];
    const all = data.ways.map((_, way) => count(way, m)), totals = all.map(sum);
    const top = Math.max(...totals), high = 58;
    bars.setAttribute("viewBox", `0 0 ${width} ${high * all.length}`);
    bars.setAttribute("aria-label", data.ways.map((w, i) => `${w} ${number(totals[i])} GB`).join(", "));
    bars.replaceChildren();
    all.forEach((parts, i) => {
      const y = i * high;
      bars.append(svgEl("text", { x: 0, y: y + 16 }, `${data.ways[i]}: ${number(totals[i])} GB, ${fits(totals[i])}`));
      let x = 0;
      parts.forEach((gb, k) => {
        const wide = width * gb / (state.scale ? totals[i] : top);
        if (wide > 0) bars.append(svgEl("rect", { x, y: y + 23, width: wide, height: 22, fill: fills[k] }));
        x += wide;
      });
    });
    const head = el("tr", {}, el("th", {}, "GB"), ...data.ways.map(w => el("th", { scope: "col" }, w)));
    const lines = data.parts.map((part, k) => {
      const key = el("span", { "aria-hidden": "true",
        style: `display:inline-block;width:.8em;height:.8em;margin-right:.45em;background:${fills[k]}` });
      return el("tr", {}, el("th", { scope: "row", style: "text-align:left;font-weight:normal" }, key, part),
        ...all.map(parts => el("td", { style: "text-align:right" }, number(parts[k]))));
    });
    grid.replaceChildren(el("table", { style: "width:100%" }, el("thead", {}, head), el("tbody", {}, ...lines)));
    read.replaceChildren(`${name}, rank ${2 ** state.rank}, ${(2 ** state.tokens).toLocaleString("en")} tokens: QLoRA takes `,
      el("strong", {}, `${number(totals[2])} GB`), `, LoRA ${number(totals[1])} GB, training all weights `
      + `${number(totals[0])} GB. Of QLoRA's, ${Math.round(100 * all[2][0] / totals[2])}% are weights and `
      + `${Math.round(100 * all[2][4] / totals[2])}% activations.`);
  };
  const set = key => v => { state[key] = v; update(); };
  root.append(el("div", { class: "qfig-controls" },
    choice("Model", data.models.map(m => m[0]), state.model, set("model")),
    slider("Rank", 0, 8, state.rank, v => String(2 ** v), set("rank")),
    slider("Tokens of a batch", 8, 16, state.tokens, v => (2 ** v).toLocaleString("en"), set("tokens")),
    choice("Checkpointing", ["no", "yes"], state.checkpointing, set("checkpointing")),
    choice("Base of QLoRA", data.bases.map(b => `${b[0]} (${number(b[1], 4)} bits)`), state.base, set("base")),
    choice("Bars", ["on one scale", "each as long"], state.scale, set("scale"))), bars, grid, read);
  update();
});
