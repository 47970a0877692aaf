// Who loads what: a file and an engine, and what would work instead.
qlab.define("wholoads", (root, data) => {
  const { el, choice, number, colors } = qlab;
  const state = { file: Math.min(1, data.files.length - 1), engine: 0 };
  const fills = { agrees: colors[2], differs: colors[4], refuses: colors[1], "not tried": "gray" };
  const marks = { agrees: "✓", differs: "≠", refuses: "✗", "not tried": "·" };
  const out = el("div", { "aria-live": "polite" });
  const line = (label, ...content) =>
    el("p", { class: "qfig-read", style: "overflow-wrap:anywhere" },
      el("span", { style: "opacity:.8" }, label + ": "), ...content);
  const agree = pairs => pairs.filter(([, c]) => c.status === "agrees").map(([n]) => n).join(", ") || "none that was tried";
  const update = () => {
    const cell = data.cells[state.file][state.engine];
    const others = data.engines.map((e, i) => [e, data.cells[state.file][i]]);
    const files = data.files.map((f, i) => [f, data.cells[i][state.engine]]);
    const parts = [line(`${data.files[state.file]} in ${data.engines[state.engine]}`,
      el("strong", { style: `border-bottom:3px solid ${fills[cell.status]}` },
        `${marks[cell.status]} ${data.words[cell.status]}`))];
    if (cell.perplexity) parts.push(line("Perplexity", `${number(cell.perplexity, 4)} there, ${number(cell.ours, 4)} in qlab`));
    if (cell.why) parts.push(line("It says", el("code", { style: "white-space:normal" }, cell.why)));
    parts.push(line("Engines that agree on this file", agree(others)));
    parts.push(line("Files on which this engine agrees", agree(files)));
    out.replaceChildren(...parts);
    root.dataset.status = cell.status;
  };
  const set = key => v => { state[key] = v; update(); };
  root.append(el("div", { class: "qfig-controls" },
    choice("I have", data.files, state.file, set("file")),
    choice("I want to run it in", data.engines, state.engine, set("engine"))), out);
  update();
});
