// Flip the bits: a pattern, the formula that gives its value, and the values beside it.
qlab.define("bits", (root, data) => {
  const { el, svgEl, choice, colors } = qlab;
  // A format is {name, kind: float | int | scale, sign, exponent, mantissa, bias, special}, where
  // special says what the largest exponent is for: ieee (inf and NaN), nan (one pattern), none.
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const size = f => f.sign + f.exponent + f.mantissa;
  const half = f => 2 ** (size(f) - 1);
  const lowest = f => 1 - f.bias;                          // exponent of the smallest normal number
  const top = f => {                                       // magnitude of the largest finite value
    const all = 2 ** (f.exponent + f.mantissa) - 1;
    return f.special === "ieee" ? all - 2 ** f.mantissa : f.special === "nan" ? all - 1 : all;
  };
  const magnitude = (f, m) => {
    const e = Math.floor(m / 2 ** f.mantissa), part = m % 2 ** f.mantissa / 2 ** f.mantissa;
    if (f.kind === "scale") return m > top(f) ? NaN : 2 ** (e - f.bias);
    if (m > top(f)) return f.special === "ieee" && part === 0 ? Infinity : NaN;
    return e === 0 ? part * 2 ** lowest(f) : (1 + part) * 2 ** (e - f.bias);
  };
  const decode = (f, code) => {
    if (f.kind === "int") return f.sign && code >= half(f) ? code - 2 * half(f) : code;
    return f.sign && code >= half(f) ? -magnitude(f, code - half(f)) : magnitude(f, code);
  };
  // The place of a pattern among the finite values, so that neighbours are one apart.
  const place = (f, code) => f.kind === "int" ? decode(f, code)
    : f.sign && code >= half(f) ? half(f) - code : code;
  const places = f => f.kind === "int" ? [f.sign ? -half(f) : 0, (f.sign ? half(f) : 2 * half(f)) - 1]
    : [f.sign ? -top(f) : 0, top(f)];
  const at = (f, p) => f.kind === "int" ? (p < 0 ? p + 2 * half(f) : p) : p < 0 ? half(f) - p : p;
  const clamp = (f, p) => Math.max(places(f)[0], Math.min(places(f)[1], p));
  const exponentOf = m => {
    let e = Math.floor(Math.log2(m));
    while (2 ** e > m) e--;
    while (2 ** (e + 1) <= m) e++;
    return e;
  };
  // Nearest pattern, half to even; what is too large becomes what the format says (f.overflow).
  const encode = (f, x) => {
    if (f.kind === "int") return at(f, clamp(f, round(x)));
    const m = Math.abs(x), beyond = f.overflow === "saturate" ? top(f) : top(f) + 1;
    let code = 0;
    if (f.kind === "scale") {                              // a power of two; a half goes up. Just above the lowest,
                                                           // all go up, as in ml_dtypes and torch.
      if (x < 0) return top(f) + 1;
      const e = m > 0 && m < Infinity ? exponentOf(m) : -Infinity;
      code = m === Infinity ? beyond : Math.max(0, ((e === -f.bias ? m / 2 ** e > 1 : m / 2 ** e >= 1.5) ? e + 1 : e) + f.bias);
    } else if (m > 0) {
      const e = m === Infinity ? 0 : Math.max(exponentOf(m), lowest(f));
      // A mantissa that rounds up to 2 carries into the exponent by itself.
      code = m === Infinity ? beyond : (e - lowest(f)) * 2 ** f.mantissa + round(m / 2 ** (e - f.mantissa));
    }
    if (code > top(f)) code = beyond;
    return f.sign && (x < 0 || Object.is(x, -0)) ? half(f) + code : code;
  };
  root.qlabBits = { decode: (i, c) => decode(data.formats[i], c), encode: (i, x) => encode(data.formats[i], x),
    neighbours: (i, c) => beside(data.formats[i], c) };

  const say = x => x === null ? "none" : Number.isNaN(x) ? "NaN" : x === Infinity ? "infinity" : x === -Infinity ? "−infinity"
    : Object.is(x, -0) ? "−0" : (Math.abs(x) >= 1e10 ? Number(x.toPrecision(10)).toExponential()
      : String(Number(x.toPrecision(10)))).replace(/-/g, "−");
  const beside = (f, code) => {
    if (!Number.isFinite(decode(f, code))) return [null, null];
    const p = place(f, code), [low, high] = places(f);
    // -0 and +0 are one place: p counts from +0.
    return [p > low ? decode(f, at(f, p - 1)) : null, p < high ? decode(f, at(f, p + 1)) : null];
  };

  const state = { format: data.start.format, code: 0, typed: null };
  const now = () => data.formats[state.format];
  const style = el("style", {}, `
.qbits { display: flex; flex-wrap: wrap; gap: .5rem 1rem; margin: .4rem 0 .6rem; }
.qbits > div { min-width: 0; max-width: 100%; }
.qbits-row { display: flex; flex-wrap: wrap; gap: 3px; }
.qfig .qbits button { width: 1.95rem; height: 2.3rem; padding: 0; font-family: var(--q-mono, monospace);
  font-size: 1.05rem; border: 1.5px dashed var(--c); background: transparent; cursor: pointer; }
.qfig .qbits button[aria-pressed=true] { border: 2.5px solid var(--c); font-weight: 600;
  background: color-mix(in srgb, var(--c) 30%, transparent); }
.qbits-name { font-size: .82rem; margin-bottom: .25rem; border-left: 4px solid var(--c); padding-left: .4rem; }
.qbits-go { display: flex; flex-wrap: wrap; gap: .4rem; margin-bottom: .6rem; }
.qfig .qbits-go button { font-size: .85rem; cursor: pointer; }
.qbits-value { font-size: 1.5rem; font-weight: 600; font-variant-numeric: tabular-nums; overflow-wrap: anywhere; }
.qfig-controls input[type=text] { font: inherit; color: inherit; background: var(--q-raised, transparent);
  border: 1px solid var(--q-line, #888); border-radius: 4px; padding: .25rem .4rem; width: 100%; box-sizing: border-box; }`);
  const bitsRow = el("div", { class: "qbits", role: "toolbar", "aria-label": "Bits of the pattern; arrow keys move, space flips" });
  const read = el("div", { "aria-live": "polite" });
  const line = svgEl("svg", { role: "img", "aria-label": "The values beside this one, on a line" });
  const input = el("input", { type: "text", inputmode: "decimal", "aria-label": "Number to encode", value: "", autocomplete: "off" });

  const fields = f => {
    if (f.kind === "int") return [
      ...(f.sign ? [{ name: "sign", bits: 1, color: colors[1] }] : []),
      { name: "integer", bits: size(f) - f.sign, color: colors[2] }];
    return [{ name: "sign", bits: f.sign, color: colors[1] }, { name: "exponent", bits: f.exponent, color: colors[0] },
      { name: "mantissa", bits: f.mantissa, color: colors[2] }].filter(g => g.bits);
  };
  const worth = (f, i) => {                                // what bit i (0 is the lowest) stands for
    if (f.kind === "int") return f.sign && i === size(f) - 1 ? `worth −${2 ** i}` : `worth ${2 ** i}`;
    if (f.sign && i === size(f) - 1) return "minus";
    if (i >= f.mantissa) return `adds ${2 ** (i - f.mantissa)} to the exponent field`;
    return `adds ${2 ** i} / ${2 ** f.mantissa} to the mantissa`;
  };
  const bit = (code, i) => Math.floor(code / 2 ** i) % 2;
  let buttons = [], labels = [];
  const build = () => {
    const f = now();
    let i = size(f);
    buttons = []; labels = [];
    bitsRow.replaceChildren(...fields(f).map(g => {
      const label = el("div", { class: "qbits-name" }), row = el("div", { class: "qbits-row" });
      labels.push({ ...g, label, low: i - g.bits });
      for (let k = 0; k < g.bits; k++) {
        const index = --i, b = el("button", { type: "button", "aria-label": `${g.name} bit ${index}, ${worth(f, index)}`,
          title: worth(f, index), tabindex: buttons.length ? -1 : 0 });
        b.addEventListener("click", () => {
          state.code += bit(state.code, index) ? -(2 ** index) : 2 ** index;
          state.typed = null; input.value = ""; focusOn(buttons.indexOf(b)); update();
        });
        buttons.push(b); row.append(b);
      }
      return el("div", { style: `--c: ${g.color}`, role: "group", "aria-label": g.name }, label, row);
    }));
  };
  const focusOn = k => { buttons.forEach((b, j) => b.setAttribute("tabindex", j === k ? 0 : -1)); buttons[k].focus(); };
  bitsRow.addEventListener("keydown", e => {
    const k = buttons.indexOf(document.activeElement), last = buttons.length - 1;
    const to = { ArrowLeft: k - 1, ArrowRight: k + 1, Home: 0, End: last }[e.key];
    if (k < 0 || to === undefined) return;
    e.preventDefault();
    focusOn(Math.max(0, Math.min(last, to)));
  });

  const sup = t => el("sup", {}, say(t));
  const formula = (f, code) => {
    const value = decode(f, code);
    if (f.kind === "int") {
      const parts = [];
      for (let i = size(f) - 1; i >= 0; i--) if (bit(code, i)) parts.push(f.sign && i === size(f) - 1 ? `−${2 ** i}` : `${2 ** i}`);
      return [parts.length ? `${parts.join(" + ")} = ${say(value)}` : "no bit is set: 0"];
    }
    const s = f.sign && code >= half(f) ? 1 : 0, m = s ? code - half(f) : code;
    const e = Math.floor(m / 2 ** f.mantissa), part = m % 2 ** f.mantissa;
    if (m > top(f)) return [f.special === "ieee"
      ? `All exponent bits are set: ${part ? "not a number, since the mantissa is not 0" : "infinity, since the mantissa is 0"}.`
      : "All bits are set: not a number."];
    const minus = f.sign ? ["(−1)", sup(s), " × "] : [];
    if (f.kind === "scale") return ["2", el("sup", {}, `${e} − ${f.bias}`), ` = ${say(value)}`];
    const fraction = f.mantissa ? `${part}/${2 ** f.mantissa}` : "0";
    return e === 0 ? [...minus, "2", el("sup", {}, `1 − ${f.bias}`), ` × (0 + ${fraction}) = ${say(value)}`]
      : [...minus, "2", el("sup", {}, `${e} − ${f.bias}`), ` × (1 + ${fraction}) = ${say(value)}`];
  };
  const kindOf = (f, code) => {
    const value = decode(f, code);
    if (Number.isNaN(value)) return "special: not a number";
    if (!Number.isFinite(value)) return "special: infinity";
    if (f.kind === "int") return "integer";
    if (f.kind === "scale") return "power of two";
    if (value === 0) return "zero";
    return Math.abs(value) < 2 ** lowest(f) ? "subnormal: the exponent bits are all 0" : "normal";
  };
  const drawLine = f => {
    // As many units as pixels, so that the text keeps its size on a phone.
    const width = Math.max(300, Math.min(640, root.clientWidth || 640)), right = width - 50;
    line.setAttribute("viewBox", `0 0 ${width} 96`);
    line.replaceChildren();
    const value = decode(f, state.code);
    if (!Number.isFinite(value)) {
      line.append(svgEl("text", { x: width / 2, y: 50, "text-anchor": "middle" }, "not on the line"));
      return;
    }
    const p = place(f, state.code), shown = [];
    for (let q = clamp(f, p - 5); q <= clamp(f, p + 5); q++) shown.push([q, decode(f, at(f, q))]);
    const low = shown[0][1], high = shown[shown.length - 1][1], x = v => 50 + (v - low) / (high - low || 1) * (right - 50);
    line.append(svgEl("line", { class: "axis", x1: 20, x2: width - 20, y1: 50, y2: 50 }));
    for (const [q, v] of shown) {
      const here = q === p, near = Math.abs(q - p) === 1;
      line.append(svgEl("line", { x1: x(v), x2: x(v), y1: here ? 24 : 38, y2: here ? 76 : 62, stroke: here ? colors[1] : "currentColor",
        "stroke-width": here ? 4 : 1.6, "data-value": v }));
      const first = q === shown[0][0], last = q === shown[shown.length - 1][0];
      if (here) line.append(svgEl("text", { x: x(v), y: 16, "text-anchor": first ? "start" : last ? "end" : "middle",
        "font-weight": 600 }, say(v)));
      // The ends are labelled, and a neighbour where its label fits between.
      else if (first || last || near && Math.min(x(v) - 50, right - x(v)) > 100) line.append(svgEl("text", { x: x(v), y: 90,
        "text-anchor": first ? "start" : last ? "end" : v > value ? "start" : "end" }, say(v)));
    }
    if (state.typed !== null && state.typed >= low && state.typed <= high) line.append(svgEl("path", {
      d: `M${x(state.typed)} 50 l-6 -12 h12 z`, fill: colors[0] }));
  };
  const update = () => {
    const f = now(), value = decode(f, state.code), n = size(f);
    buttons.forEach((b, k) => {
      const on = bit(state.code, n - 1 - k) === 1;
      b.setAttribute("aria-pressed", on);
      b.textContent = on ? "1" : "0";
    });
    for (const g of labels) {
      const field = Math.floor(state.code / 2 ** g.low) % 2 ** g.bits;
      g.label.textContent = g.name === "sign" || g.name === "integer" ? g.name : `${g.name} = ${field}`;
    }
    const [below, above] = beside(f, state.code), up = above === null ? null : above - value, down = below === null ? null : value - below;
    const step = value < 0 ? down : up, back = value < 0 ? up : down;
    const size_ = step === null ? back : step;
    const relative = size_ !== null && value !== 0 ? ` (${qlab.number(100 * size_ / Math.abs(value))} % of the value)` : "";
    const lines = [
      el("p", { class: "qfig-read" }, el("span", { class: "qbits-value" }, say(value)), `  ${kindOf(f, state.code)}; code ${state.code}, in hexadecimal 0x${state.code.toString(16).toUpperCase().padStart(Math.ceil(n / 4), "0")}`),
      el("p", { class: "qfig-read" }, ...formula(f, state.code)),
      el("p", { class: "qfig-read" }, `Next value below: ${say(below)}. Above: ${say(above)}. `
        + (size_ === null ? "" : `Step: ${say(size_)}${relative}.`))];
    if (state.typed !== null) {
      const error = value - state.typed, ends = places(f).map(p => decode(f, at(f, p)));
      lines.push(el("p", { class: "qfig-read" }, !Number.isFinite(error) ? `You typed ${say(state.typed)}: it is out of range, and becomes ${say(value)}.`
        : error === 0 ? `You typed ${say(state.typed)}: it is held exactly.`
        : `You typed ${say(state.typed)}: the nearest value is ${say(value)}, ${qlab.number(Math.abs(error))} ${error > 0 ? "more" : "less"}`
          + `${state.typed ? ` (${qlab.number(100 * Math.abs(error / state.typed))} %)` : ""}.`
          + (Math.abs(state.typed) > Math.abs(value) && (value === ends[0] || value === ends[1]) ? " It is out of range." : "")));
    }
    read.replaceChildren(...lines);
    drawLine(f);
  };
  const type = x => { state.typed = x; state.code = encode(now(), x); update(); };
  const take = () => {
    const text = input.value.trim().replace("−", "-"), x = Number(text);
    if (text === "" || Number.isNaN(x)) { if (text !== "") input.setAttribute("aria-invalid", "true"); return; }
    input.removeAttribute("aria-invalid");
    type(x);
  };
  input.addEventListener("input", take);
  const button = (text, label, act) => {
    const b = el("button", { type: "button", "aria-label": label }, text);
    b.addEventListener("click", () => { state.typed = null; input.value = ""; act(now()); update(); });
    return b;
  };
  const move = by => f => { if (Number.isFinite(decode(f, state.code))) state.code = at(f, clamp(f, place(f, state.code) + by)); };
  const smallest = f => at(f, f.kind === "scale" ? 0 : 1);
  root.append(style,
    el("div", { class: "qfig-controls" },
      choice("Format", data.formats.map(f => f.label), state.format, i => {
        const kept = state.typed ?? decode(now(), state.code);
        state.format = i;
        build();
        state.code = encode(now(), Number.isFinite(kept) ? kept : 1);
        // A number that the new format cannot hold stays on the page as what was asked for.
        state.typed = state.typed ?? (Number.isFinite(kept) && decode(now(), state.code) !== kept ? kept : null);
        update();
      }),
      el("label", {}, el("span", {}, "Type a number to encode it"), input)),
    bitsRow,
    el("div", { class: "qbits-go" },
      button("◂ value below", "Go to the next value below", move(-1)),
      button("value above ▸", "Go to the next value above", move(1)),
      button("one", "Go to the value nearest to one", f => { state.code = encode(f, 1); }),
      button("smallest", "Go to the smallest positive value", f => { state.code = smallest(f); }),
      button("largest", "Go to the largest value", f => { state.code = at(f, places(f)[1]); })),
    read, line);
  build();
  state.code = data.start.code;
  update();
  addEventListener("resize", () => drawLine(now()));
});
