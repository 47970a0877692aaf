// What each worker holds, by ZeRO's stage.
qlab.define("zero", (root, data) => {
  const { el, svgEl, slider, choice, number, colors } = qlab;
  const narrow = root.clientWidth && root.clientWidth < 480;
  const width = narrow ? 400 : 640, high = 50;
  const state = { model: 5, workers: 3, stage: 0, offload: 0, precision: 0 };
  const parts = ["weights", "gradients", "optimizer", "host"];
  const fills = [colors[0], colors[1], colors[4], colors[5]];
  const bars = svgEl("svg", { role: "img", viewBox: `0 0 ${width} ${high * data.stages.length}` });
  const grid = el("div"), read = qlab.readout();
  // GB of weights, gradients and optimizer on the device, and of what is on the host instead.
  const count = stage => {
    const billions = data.models[state.model][1], n = 2 ** state.workers;
    const each = data.precisions[state.precision][1];
    const held = each.map((bytes, k) => bytes * billions / (stage >= 3 - k ? n : 1));
    let host = 0;
    if (state.offload >= 1 && stage >= 1) { host += held[2]; held[2] = 0; }
    if (state.offload >= 1 && stage >= 2) { host += held[1]; held[1] = 0; }
    if (state.offload === 2 && stage === 3) { host += held[0]; held[0] = 0; }
    return [...held, host];
  };
  const device = held => held[0] + held[1] + held[2];
  const update = () => {
    const all = data.stages.map((_, stage) => count(stage));
    const top = Math.max(...all.map(device));
    const limit = data.card * data.margin;
    bars.replaceChildren();
    bars.setAttribute("aria-label", data.stages.map((s, i) => `${s}: ${number(device(all[i]))} GB`).join(", "));
    all.forEach((held, i) => {
      const gb = device(held), y = i * high;
      bars.append(svgEl("text", { x: 0, y: y + 15, "font-weight": i === state.stage ? "bold" : "normal" },
        `${data.stages[i]}: ${number(gb)} GB ${gb <= limit ? "\u2713" : "\u2717"}`));
      let x = 0;
      held.slice(0, 3).forEach((part, k) => {
        const wide = width * part / top;
        if (wide > 0) bars.append(svgEl("rect", { x, y: y + 21, width: wide, height: 18, fill: fills[k] }));
        x += wide;
      });
      if (limit < top) bars.append(svgEl("line", { class: "axis", x1: width * limit / top, x2: width * limit / top,
        y1: y + 18, y2: y + 42 }));
    });
    const head = el("tr", {}, el("th", {}, "GB"), ...data.stages.map(s => el("th", { scope: "col" }, s)));
    const lines = parts.map((part, k) => {
      const key = el("span", { "aria-hidden": "true",
        style: `display:inline-block;width:.8em;height:.8em;margin-right:.45em;background:${fills[k]}` });
      return el("tr", {}, el("th", { scope: "row", style: "text-align:left;font-weight:normal" }, ...(k < 3 ? [key] : []),
        k < 3 ? part : "on the host"),
        ...all.map(held => el("td", { style: "text-align:right" }, number(held[k]))));
    });
    grid.replaceChildren(el("table", { style: "width:100%" }, el("thead", {}, head), el("tbody", {}, ...lines)));
    const mine = all[state.stage], gb = device(mine), n = 2 ** state.workers;
    read.replaceChildren(`${data.models[state.model][0]}, ${n.toLocaleString("en")} worker${n > 1 ? "s" : ""}, `
      + `${state.stage ? data.stages[state.stage] : "no stage"}: each worker holds `,
      el("strong", {}, `${number(gb)} GB`), ` on its device${mine[3] ? ` and ${number(mine[3])} GB on its host` : ""}. `
      + `A card of ${data.card} GB is ${gb <= limit ? "large enough" : "too small"}.`);
  };
  const set = key => v => { state[key] = v; update(); };
  root.append(el("div", { class: "qfig-controls" },
    choice("Model", data.models.map(m => m[0]), state.model, set("model")),
    slider("Workers", 0, 10, state.workers, v => (2 ** v).toLocaleString("en"), set("workers")),
    choice("Stage", data.stages, state.stage, set("stage")),
    choice("Offload", data.offloads, state.offload, set("offload")),
    choice("Numbers", data.precisions.map(p => p[0]), state.precision, set("precision"))), bars, grid, read);
  update();
});
