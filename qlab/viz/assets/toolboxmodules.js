// The parts of a model under a tool: a bar for each, as long as its bytes, over what 16 bits take.
qlab.define("toolboxmodules", (root, data) => {
  const { el, choice, number, colors } = qlab;
  const state = { tool: 0, model: 0 };
  const style = el("style", {}, `
.qparts { display: flex; flex-direction: column; gap: 6px; }
.qparts > div { display: grid; grid-template-columns: minmax(6rem, 8rem) 1fr minmax(5.5rem, 7rem); gap: .5rem;
  align-items: center; font-size: .85rem; }
.qparts .qtrack { position: relative; height: 1.1rem; border-radius: 2px; overflow: hidden; }
.qparts i { position: absolute; inset: 0 auto 0 0; border-radius: 2px; min-width: 1px; }
.qparts b { text-align: right; font-weight: inherit; font-variant-numeric: tabular-nums; }`);
  const list = el("div", { class: "qparts" });
  const read = qlab.readout();
  const size = v => v >= 1e9 ? number(v / 1e9) + " GB" : v >= 1e6 ? number(v / 1e6) + " MB" : number(v / 1e3) + " kB";
  const parts = (tool, model) => data.kinds.map((kind, i) => {
    const bits = tool.bits[i], shared = kind === "head" && model.tied;
    return { kind, bits, shared: shared && bits === null,
      bytes: bits === null ? (shared ? 0 : data.whole * model.weights[i] / 8) : bits * model.weights[i] / 8,
      whole: shared ? 0 : data.whole * model.weights[i] / 8 };
  });
  root.qlabRun = (tool, model) => parts(data.tools[tool], data.models[model]).map(p => p.bytes); // for tests
  const update = () => {
    const tool = data.tools[state.tool], model = data.models[state.model];
    const found = parts(tool, model), top = Math.max(...found.map(p => Math.max(p.bytes, p.whole)));
    list.replaceChildren(...found.map(p => {
      const track = el("div", { class: "qtrack" }, el("i"), el("i"));
      const [pale, full] = track.children;
      pale.style.cssText = `width:${100 * p.whole / top}%;background:currentColor;opacity:.16`;
      full.style.cssText = `width:${100 * p.bytes / top}%;background:${p.bits === null ? colors[4] : colors[0]}`;
      const text = p.shared ? "the embedding" : (p.bits === null ? "as it was" : number(p.bits) + " bits");
      return el("div", {}, el("span", {}, p.kind), track, el("b", {}, text, el("br"), p.shared ? "0" : size(p.bytes)));
    }));
    const sum = key => found.reduce((s, p) => s + p[key], 0);
    const left = found.filter(p => p.bits === null).reduce((s, p) => s + p.bytes, 0);
    read.replaceChildren(el("strong", {}, tool.name), ` makes ${model.name} `, el("strong", {}, size(sum("bytes"))),
      ` instead of ${size(sum("whole"))}. Of that, `, el("strong", {}, (100 * left / sum("bytes")).toFixed(0) + "%"),
      " is what it left alone.");
  };
  root.append(style, el("div", { class: "qfig-controls" },
    choice("Tool", data.tools.map(t => t.name), 0, v => { state.tool = v; update(); }),
    choice("Model", data.models.map(m => m.name), 0, v => { state.model = v; update(); })), list, read);
  update();
});
