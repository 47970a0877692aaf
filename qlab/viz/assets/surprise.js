// The pieces of a text, shaded by the loss of each.
qlab.define("surprise", (root, data) => {
  const { el, number } = qlab;
  const read = qlab.readout(), text = el("p", { class: "qfig-pieces" });
  const top = Math.max(...data.losses);
  const spans = data.pieces.map((piece, i) => {
    const share = Math.round(45 * data.losses[i] / top);
    const span = el("span", { tabindex: i ? -1 : 0, role: "img",
      style: `background:color-mix(in srgb, var(--q-accent, #0b5d7a) ${share}%, transparent)` },
      piece.replace(/\n/g, "\u21b5 "));
    const guess = data.guesses[i].length ? ` Expected: ${data.guesses[i].map(g => `"${g.trim() || g}"`).join(", ")}.` : "";
    const words = `"${piece.trim() || piece}": probability ${number(100 * Math.exp(-data.losses[i]), 2)}%, ` +
      `loss ${number(data.losses[i])} nats.${guess}`;
    span.setAttribute("aria-label", words);
    const say = () => {
      read.textContent = words;
      spans.forEach(s => { s.tabIndex = s === span ? 0 : -1; s.classList.toggle("chosen", s === span); });
    };
    span.addEventListener("focus", say);
    span.addEventListener("pointerenter", say);
    span.addEventListener("click", () => span.focus());
    return span;
  });
  text.append(...spans);
  text.addEventListener("keydown", e => {
    const i = spans.indexOf(document.activeElement);
    const next = { ArrowRight: i + 1, ArrowLeft: i - 1, Home: 0, End: spans.length - 1 }[e.key];
    if (next !== undefined && spans[next]) { spans[next].focus(); e.preventDefault(); }
  });
  read.textContent = "Point at a piece.";
  root.append(text, read);
});
