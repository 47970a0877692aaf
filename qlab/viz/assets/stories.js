// Two continuations of the same opening; words outside the longest common subsequence are marked.
qlab.define("stories", (root, data) => {
  const { el, slider, choice } = qlab;
  const state = { opening: 0, a: 0, b: Math.min(1, data.names.length - 1) };
  const common = (p, q) => {
    const best = Array.from({ length: p.length + 1 }, () => new Uint16Array(q.length + 1));
    for (let i = p.length - 1; i >= 0; i--)
      for (let j = q.length - 1; j >= 0; j--)
        best[i][j] = p[i] === q[j] ? best[i + 1][j + 1] + 1 : Math.max(best[i + 1][j], best[i][j + 1]);
    const inP = new Set(), inQ = new Set();
    for (let i = 0, j = 0; i < p.length && j < q.length;) {
      if (p[i] === q[j]) { inP.add(i++); inQ.add(j++); }
      else if (best[i + 1][j] >= best[i][j + 1]) i++; else j++;
    }
    return [inP, inQ];
  };
  const holder = el("div", { class: "qfig-columns", "aria-live": "polite" });
  const start = el("p", { style: "font-style: italic" });
  const read = qlab.readout();
  const update = () => {
    start.textContent = data.openings[state.opening];
    const words = [state.a, state.b].map(k => data.texts[k][state.opening].split(/\s+/).filter(Boolean));
    const same = common(words[0], words[1]);
    holder.replaceChildren(...[state.a, state.b].map((k, side) => {
      const p = el("p");
      words[side].forEach((word, i) =>
        p.append(same[side].has(i) || state.a === state.b ? word : el("mark", {}, word), " "));
      return el("div", {}, el("h4", {}, data.names[k]), p);
    }));
    const total = words[0].length + words[1].length;
    const share = total ? Math.round(200 * same[0].size / total) : 100;
    read.textContent = `${share} percent of the words are common to both, in the same order.`;
  };
  root.append(el("div", { class: "qfig-controls" },
    slider("Opening", 1, data.openings.length, 1, v => `${v} of ${data.openings.length}`,
      v => { state.opening = v - 1; update(); }),
    choice("Left", data.names, state.a, v => { state.a = v; update(); }),
    choice("Right", data.names, state.b, v => { state.b = v; update(); })), start, holder, read);
  update();
});
