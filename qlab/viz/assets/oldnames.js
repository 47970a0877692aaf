// Old names: a search field over the list.
qlab.define("oldnames", (root, data) => {
  const { el } = qlab;
  const input = el("input", { type: "search", "aria-label": "Old name", placeholder: "quantize", style: "width:100%;font-size:1rem;padding:.3em" });
  const out = el("div", { "aria-live": "polite" });
  const update = () => {
    const words = input.value.toLowerCase().split(/\s+/).filter(Boolean);
    const found = data.rows.filter(r => words.every(w => `${r.old} ${r.was} ${r.now} ${r.line}`.toLowerCase().includes(w)));
    const shown = words.length ? found : found.slice(0, 3);
    root.dataset.count = found.length;
    const parts = shown.slice(0, 5).map(r => el("div", { style: "margin:.6em 0" },
      el("p", { class: "qfig-read" }, el("code", {}, r.old)), el("p", { class: "qfig-read" }, `Was: ${r.was}`),
      el("p", { class: "qfig-read" }, el("strong", {}, `Now: ${r.now}`)),
      el("pre", { style: "white-space:pre-wrap;overflow-wrap:anywhere;margin:.2em 0" }, r.line)));
    const rest = found.length - parts.length;
    const note = !found.length ? "Nothing of that name on this page." : rest ? `and ${rest} more: type a part of a name` : "";
    out.replaceChildren(...parts, el("p", { class: "qfig-read" }, note));
  };
  input.addEventListener("input", update);
  root.append(el("label", {}, "Search", input), out);
  update();
});
