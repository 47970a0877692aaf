// One text under every way of measuring its perplexity.
qlab.define("perplexitytraps", (root, data) => {
  const { el, number, choice } = qlab;
  const state = { context: data.contexts.length - 1, stride: 0, bos: 0, unit: 0 };
  const runOf = s => data.runs[(s.context * 2 + s.bos) * data.strides.length + s.stride];
  // The figure in a unit: {value, words}. Bits and words divide by what the scored tokens hold of
  // the text; a token that is not scored takes its share of it along.
  const figureOf = s => {
    const losses = runOf(s).losses, scored = losses.filter(x => x !== null);
    const nats = scored.reduce((a, b) => a + b, 0), share = scored.length / losses.length;
    const { words, characters, bytes } = data.counts;
    const value = [Math.exp(nats / scored.length), Math.exp(nats / (words * share)),
      nats / Math.LN2 / (characters * share), nats / Math.LN2 / (bytes * share)][s.unit];
    return { value, scored: scored.length };
  };
  root.qlabFigure = (context, bos, stride, unit) => figureOf({ context, bos, stride, unit });
  const all = unit => {
    const found = [];
    for (let context = 0; context < data.contexts.length; context++) for (const bos of [0, 1])
      for (let stride = 0; stride < data.strides.length; stride++) found.push(figureOf({ context, bos, stride, unit }).value);
    return [Math.min(...found), Math.max(...found)];
  };
  const read = qlab.readout(), piece = el("p", { class: "qfig-read", "aria-live": "polite" });
  const text = el("p", { class: "qfig-pieces" });
  const top = 8;  // nats; the darkest shade
  const spans = data.pieces.map((p, i) => {
    const span = el("span", { tabindex: i ? -1 : 0, role: "img" }, p.replace(/\n/g, "\u21b5 "));
    const say = () => {
      const run = runOf(state), w = run.windows.find(([, end, first]) => i >= first && i < end);
      const words = `"${p.trim() || p}": ` + (w ? `loss ${number(run.losses[i])} nats, with ${i - w[0]} ` +
        `piece${i - w[0] === 1 ? "" : "s"} of the text before it${state.bos ? "" : " and BOS"}.` : "not scored: nothing stands before it in its window.");
      span.setAttribute("aria-label", words);
      piece.textContent = words;
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
  const update = () => {
    const run = runOf(state), { value, scored } = figureOf(state), [low, high] = all(state.unit);
    const begins = new Set(run.windows.map(w => w[2]));
    spans.forEach((span, i) => {
      const loss = run.losses[i], share = loss === null ? 0 : Math.round(45 * Math.min(1, loss / top));
      span.style.background = `color-mix(in srgb, var(--q-accent, #0b5d7a) ${share}%, transparent)`;
      span.style.textDecoration = loss === null ? "line-through" : "none";
      span.style.borderLeft = begins.has(i) ? "2px solid currentColor" : "none";
      span.setAttribute("aria-label", `${data.pieces[i].trim() || data.pieces[i]}: ${loss === null ? "not scored" : number(loss) + " nats"}`);
    });
    const [unit, what] = data.units[state.unit].split(": ");
    read.replaceChildren(what === "bits" ? `Bits per ${unit}: ` : `Perplexity per ${unit}: `, el("strong", {}, number(value, 4)),
      `. ${scored} of ${data.pieces.length} pieces are scored, in ${run.windows.length} window${run.windows.length === 1 ? "" : "s"}. ` +
      `Over all ways that this figure offers: ${number(low, 4)} to ${number(high, 4)}.`);
    piece.textContent = "Point at a piece.";
  };
  const change = key => i => { state[key] = i; update(); };
  root.append(el("div", { class: "qfig-controls" },
    choice("Context (tokens a window)", data.contexts.map(c => `${c}`), state.context, change("context")),
    choice("A window advances by", data.strides, state.stride, change("stride")),
    choice("BOS before each window", ["yes", "no"], state.bos, change("bos")),
    choice("Per", data.units, state.unit, change("unit"))), read, text, piece);
  update();
});
