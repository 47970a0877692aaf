// A block of GGUF: choose a byte to see its bits and its weights, or a weight to see its bytes.
qlab.define("ggufbytes", (root, data) => {
  const { el, svgEl, choice, slider, colors } = qlab;
  const kinds = { code: colors[0], scale: colors[1], minimum: colors[2] };
  const state = { type: 0, byte: 0, weight: null, errors: false };
  const type = () => data.types[state.type];
  const size = data.weights.length, columns = 32, cell = 20, tall = 26;
  const hex = v => v.toString(16).toUpperCase().padStart(2, "0");
  const say = v => (v === 0 ? "0" : qlab.number(v, 4)).replace(/-/g, "−");
  const style = el("style", {}, `
.qbytes-block { display: grid; grid-template-columns: repeat(auto-fill, minmax(1.6rem, 1fr)); gap: 2px; margin-bottom: .45rem; }
.qfig .qbytes-block button { font-family: var(--q-mono, monospace); font-size: .74rem; padding: .16rem 0; min-width: 0;
  border: 1px solid transparent; border-bottom: 3px solid var(--c); border-radius: 2px; cursor: pointer; }
.qfig .qbytes-block button.linked { background: color-mix(in srgb, var(--c) 35%, transparent); }
.qfig .qbytes-block button[aria-pressed=true] { background: color-mix(in srgb, var(--c) 35%, transparent);
  outline: 2px solid currentColor; font-weight: 700; }
.qbytes-bits { display: flex; flex-wrap: wrap; gap: .5rem; margin: .5rem 0; align-items: center; }
.qbytes-bits span { display: inline-block; font-family: var(--q-mono, monospace); padding: .2rem .5rem; letter-spacing: .2em;
  border: 2px solid var(--c); border-radius: 3px; }
.qbytes-key { font-size: .82rem; display: flex; flex-wrap: wrap; gap: .2rem 1rem; margin-bottom: .4rem; }
.qbytes-key span { border-bottom: 3px solid var(--c); }
.qbytes-errors { overflow-x: auto; } .qbytes-errors tr.chosen { font-weight: 700; }`);
  const grid = el("div", { role: "toolbar", "aria-label": "Bytes of the block; arrow keys move" });
  const bits = el("div", { class: "qbytes-bits", "aria-hidden": "true" }), read = qlab.readout();
  const drawing = svgEl("svg", { viewBox: `0 0 ${columns * cell} ${size / columns * tall}`, role: "img" });
  const errors = el("div", { class: "qbytes-errors" });
  drawing.style.cursor = "pointer";
  drawing.style.margin = ".6rem 0";

  // The pieces of a byte, with the numbers of its weights among all 256.
  const piecesOf = i => {
    const t = type(), block = Math.floor(i / t.blockBytes);
    return t.pieces[i % t.blockBytes].map(([low, n, kind, label, start, count]) =>
      ({ low, n, kind, label, count, start: start + block * t.blockSize, value: (t.bytes[i] >> low) & (2 ** n - 1) }));
  };
  const touches = (i, w) => piecesOf(i).some(p => w >= p.start && w < p.start + p.count);
  const restored = w => {
    const t = type(), run = size / t.formulas.length;
    return t.formulas[Math.floor(w / run)].replace("{q}", say(t.codes[w])).replace("{level}",
      t.levels.length ? `(level ${t.codes[w]}: ${say(t.levels[t.codes[w]])})` : "") + ` = ${say(t.decoded[w])}`;
  };

  let buttons = [];
  const build = () => {
    const t = type(), blocks = [];
    buttons = [];
    for (let b = 0; b < t.bytes.length / t.blockBytes; b++) {
      const box = el("div", { class: "qbytes-block" });
      for (let j = 0; j < t.blockBytes; j++) {
        const i = b * t.blockBytes + j, kind = t.pieces[j][0][2];
        const button = el("button", { type: "button", tabindex: -1, style: `--c: ${kinds[kind]}`,
          "aria-label": `byte ${i}, ${hex(t.bytes[i])}, ${t.pieces[j].map(p => p[2]).join(" and ")}` }, hex(t.bytes[i]));
        button.addEventListener("click", () => { state.byte = i; state.weight = null; update(); });
        buttons.push(button);
        box.append(button);
      }
      blocks.push(box);
    }
    grid.replaceChildren(...blocks);
    state.byte = Math.min(state.byte, buttons.length - 1);
  };
  grid.addEventListener("keydown", e => {
    const last = buttons.length - 1;
    // A step down is as many bytes as stand in a line.
    const line = Math.max(1, buttons.filter(b => b.offsetTop === buttons[0].offsetTop).length);
    const to = { ArrowLeft: state.byte - 1, ArrowRight: state.byte + 1, ArrowUp: state.byte - line,
      ArrowDown: state.byte + line, Home: 0, End: last }[e.key];
    if (to === undefined) return;
    e.preventDefault();
    state.byte = Math.max(0, Math.min(last, to));
    state.weight = null;
    update();
    buttons[state.byte].focus();
  });
  drawing.addEventListener("click", e => {
    const box = drawing.getBoundingClientRect();
    const x = Math.floor((e.clientX - box.left) / box.width * columns);
    const y = Math.floor((e.clientY - box.top) / box.height * size / columns);
    pick(Math.max(0, Math.min(size - 1, y * columns + x)));
  });
  const pick = w => {
    state.weight = w;
    // The byte of its code, so that the bits shown are its own.
    state.byte = buttons.findIndex((_, i) => piecesOf(i).some(p => p.kind === "code" && p.start === w));
    update();
  };

  const update = () => {
    const t = type(), byte = state.byte, pieces = piecesOf(byte), w = state.weight;
    buttons.forEach((b, i) => {
      b.setAttribute("aria-pressed", i === byte);
      b.setAttribute("tabindex", i === byte ? 0 : -1);
      b.classList.toggle("linked", w !== null && touches(i, w));
    });
    const values = state.errors ? t.decoded.map((v, i) => v - data.weights[i]) : data.weights;
    const top = Math.max(...values.map(Math.abs)) || 1;
    drawing.setAttribute("aria-label", `256 ${data.name}, ${w === null ? "those of the byte" : "one of them"} framed`);
    drawing.replaceChildren(...values.map((v, i) => svgEl("rect", { x: i % columns * cell + 1, y: Math.floor(i / columns) * tall + 1,
      width: cell - 2, height: tall - 2, fill: v < 0 ? colors[0] : colors[1], "fill-opacity": 0.06 + 0.94 * Math.abs(v) / top })));
    const frame = (from, count) => {                       // one frame for each row that the weights lie in
      for (let i = from; i < from + count; i += columns - i % columns) {
        const n = Math.min(from + count - i, columns - i % columns);
        drawing.append(svgEl("rect", { class: "framed", x: i % columns * cell, y: Math.floor(i / columns) * tall,
          width: n * cell, height: tall, fill: "none", stroke: "currentColor", "stroke-width": 2.5 }));
      }
    };
    if (w === null) pieces.forEach(p => frame(p.start, p.count)); else frame(w, 1);
    bits.replaceChildren(...pieces.slice().reverse().map(p => el("span", { style: `--c: ${kinds[p.kind]}` },
      p.value.toString(2).padStart(p.n, "0"))));
    const place = `byte ${byte % t.blockBytes} of ${t.blockBytes}` + (t.bytes.length > t.blockBytes
      ? ` in block ${Math.floor(byte / t.blockBytes)}` : "");
    if (w !== null) {
      const n = buttons.filter((_, i) => touches(i, w)).length;
      read.replaceChildren(`Weight ${w} was ${say(data.weights[w])}. ${t.name} gives `, el("strong", {}, restored(w)),
        `, off by ${say(t.decoded[w] - data.weights[w])}. It depends on the ${n} marked bytes; its code is in ${place}.`);
    } else {
      const parts = pieces.map(p => {
        const bitsText = p.n === 8 ? "All bits" : `Bits ${p.low} to ${p.low + p.n - 1}`;
        const of = p.count === 1 ? `of weight ${p.start}, ${restored(p.start)}` : `for weights ${p.start} to ${p.start + p.count - 1}`;
        return `${bitsText} (${p.value}): ${p.label} ${of}`;
      });
      read.replaceChildren(el("strong", {}, `${hex(t.bytes[byte])}`), `, ${place}. `, parts.join(". ") + ".");
    }
    const chosen = w === null ? "none chosen" : `no. ${w}`;
    weightSlider.querySelector("input").value = w === null ? 0 : w;
    weightSlider.querySelector("input").setAttribute("aria-valuetext", chosen);
    weightSlider.querySelector("output").textContent = chosen;
    const row = u => el("tr", u === t ? { class: "chosen" } : {}, el("th", { scope: "row" }, u.name), el("td", {}, String(u.bytes.length)),
      el("td", {}, qlab.number(u.bits, 5)), el("td", {}, u.sqnr.toFixed(2)), el("td", {}, say(u.worst)));
    errors.replaceChildren(el("table", {}, el("thead", {}, el("tr", {},
      ...["type", "bytes", "bits per weight", "SQNR (dB)", "largest error"].map(h => el("th", { scope: "col" }, h)))),
      el("tbody", {}, ...data.types.map(row))));
  };
  const weightSlider = slider("Weight", 0, size - 1, 0, i => `no. ${i}`, pick);
  root.append(style, el("div", { class: "qfig-controls" },
    choice("Block type", data.types.map(t => t.name), 0, i => { state.type = i; state.weight = null; state.byte = 0; build(); update(); }),
    choice("Cells show", ["weights", "errors"], 0, i => { state.errors = i === 1; update(); }), weightSlider),
    el("div", { class: "qbytes-key" }, ...Object.entries(kinds).map(([k, c]) => el("span", { style: `--c: ${c}` }, k))),
    grid, bits, read, drawing, errors);
  build();
  update();
});
