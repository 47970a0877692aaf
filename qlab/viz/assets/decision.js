// The decision map: four answers in, a family and its chapters out.
qlab.define("decision", (root, data) => {
  const { el, choice } = qlab;
  const state = [1, 0, 1, 1].map((v, i) => Math.min(v, data.questions[i].words.length - 1));
  const out = el("div", { "aria-live": "polite" });
  const line = (label, ...content) =>
    el("p", { class: "qfig-read" }, el("span", { style: "opacity:.8" }, label + ": "), ...content);
  const update = () => {
    const words = state.map((v, i) => data.questions[i].words[v]);
    const advice = data.advice[words.join("/")];
    const links = [];
    advice.read.forEach((subject, i) => {
      if (i) links.push(", ");
      const page = data.pages[subject];
      links.push(page ? el("a", { href: page + ".html" }, subject) : `${subject} (a later part)`);
    });
    out.replaceChildren(
      line("For", state.map((v, i) => data.questions[i].answers[v].split(":")[0]).join("; ")),
      line("Try first", el("strong", {}, advice.family)),
      line("Begin with", el("code", { style: "overflow-wrap:anywhere" }, `quantize_model(model, ${advice.call})`)),
      el("p", { class: "qfig-read" }, advice.why),
      line("Read", ...links));
  };
  root.append(el("div", { class: "qfig-controls" },
    ...data.questions.map((q, i) => choice(q.text, q.answers, state[i], v => { state[i] = v; update(); }))), out);
  update();
});
