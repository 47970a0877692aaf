// The decision aid: five answers in, the configurations that fit out.
qlab.define("choosing", (root, data) => {
  const { el, choice, number } = qlab;
  const state = [...data.start];
  const out = el("div", { "aria-live": "polite" });
  const line = (...content) => el("p", { class: "qfig-read" }, ...content);
  const label = text => el("span", { style: "opacity:.8" }, text + ": ");
  const shown = (name, [place, gb, speed]) => {
    const [title, bits, loss, ratio, engines] = data.options[place];
    const there = engines.filter(e => data.devices[state[1]].includes(e));
    return line(label(name), el("strong", {}, title), ` (${number(bits)} bits a weight): ${number(gb)} GB with caches, at most `,
      `${number(speed)} tokens/s for each reader; loss ${+loss.toFixed(loss < 0.01 ? 5 : 3)} nats, perplexity ${ratio.toFixed(3)} times; runs in ${there.join(", ")}`);
  };
  const update = () => {
    const [fits, found] = data.answers[state.join("/")];
    const asked = line(label("For"), state.map((v, i) => data.words[i][v]).join("; "));
    if (!fits) {
      out.replaceChildren(asked, line(el("strong", {}, "Nothing fits."), " Relax one of these:"),
        el("ul", {}, ...found.map(i => el("li", {}, data.said[i]))));
      return;
    }
    out.replaceChildren(asked, line(label("Fit"), `${fits} of ${data.options.length} configurations`),
      shown("Least loss", found[0]), shown("Smallest", found[1]), shown("Fastest", found[2]));
  };
  root.append(el("div", { class: "qfig-controls" },
    ...data.questions.map((q, i) => choice(q, data.words[i], state[i], v => { state[i] = v; update(); }))), out);
  update();
});
