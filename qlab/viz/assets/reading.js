// A blind reading: two texts in random order, votes, and who was who at the end.
qlab.define("reading", (root, data) => {
  const { el } = qlab;
  const count = data.openings.length;
  const shuffled = n => {
    const order = [...Array(n).keys()];
    for (let i = n - 1; i > 0; i--) { const j = Math.floor(Math.random() * (i + 1)); [order[i], order[j]] = [order[j], order[i]]; }
    return order;
  };
  let order, left, votes, at;  // left[i]: which teller stands left; votes[i]: 0 or 1 (the teller), null for a tie
  const head = el("p", { class: "qfig-read", tabindex: -1 }), columns = el("div", { class: "qfig-columns" });
  const buttons = el("div", { class: "qfig-controls", style: "margin-top: .8rem" }), read = qlab.readout();
  const button = (label, act) => { const b = el("button", { type: "button" }, label); b.addEventListener("click", act); return b; };
  const percent = x => (100 * x).toFixed(0) + "%";
  const start = () => {
    order = shuffled(count); left = order.map(() => Math.random() < 0.5 ? 0 : 1); votes = []; at = 0;
    read.textContent = "";
    show();
  };
  const vote = side => {
    votes[at] = side === null ? null : side === 0 ? left[at] : 1 - left[at];
    at += 1;
    if (at < count) { show(); read.textContent = `Noted. ${count - at} to go.`; } else reveal();
    head.focus();
  };
  const show = () => {
    const i = order[at], [a, b] = left[at] === 0 ? data.texts[i] : [data.texts[i][1], data.texts[i][0]];
    head.replaceChildren(`Pair ${at + 1} of ${count}. `, el("em", {}, data.openings[i]));
    columns.replaceChildren(...[["A", a], ["B", b]].map(([name, text]) =>
      el("div", {}, el("h4", {}, name), el("p", {}, text))));
    buttons.replaceChildren(button("A is better", () => vote(0)), button("B is better", () => vote(1)),
      button("No difference", () => vote(null)));
  };
  // What the votes show: {for: votes for each teller, ties, interval of the first's share}.
  const result = all => {
    const both = [0, 1].map(t => all.filter(v => v === t).length), n = both[0] + both[1];
    return { both, ties: all.length - n, interval: n ? data.intervals[n - 1][both[0]] : null };
  };
  root.qlabResult = result;
  const reveal = () => {
    const { both, ties, interval } = result(votes);
    head.textContent = "Who was who";
    columns.replaceChildren(el("ol", {}, ...order.map((i, k) => el("li", {},
      `A was ${data.names[left[k]]}, B was ${data.names[1 - left[k]]}; you chose `,
      el("strong", {}, votes[k] === null ? "neither" : data.names[votes[k]]), ". ",
      el("em", {}, data.openings[i])))));
    buttons.replaceChildren(button("Read again, in a new order", () => { start(); head.focus(); }));
    if (!interval) { read.textContent = "You chose neither in every pair: to you they are alike."; return; }
    const [low, high] = interval;
    read.replaceChildren(el("strong", {}, `${both[0]} to ${both[1]}`), ` for ${data.names[0]} against ${data.names[1]}`,
      ties ? `, ${ties} without a choice` : "", `. The share of choices for ${data.names[0]} lies between ${percent(low)} and ` +
      `${percent(high)} (95 percent, Wilson's interval). ` + (low > 0.5 ? `You told them apart, and prefer ${data.names[0]}.` :
        high < 0.5 ? `You told them apart, and prefer ${data.names[1]}.` :
          "Half is within it: these votes do not show that you prefer either."));
  };
  root.append(head, columns, buttons, read);
  start();
});
