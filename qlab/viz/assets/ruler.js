// A ruler for each format: every value that it can hold, on a linear or a logarithmic axis.
qlab.define("ruler", (root, data) => {
  const { el, svgEl, slider, choice, number, colors } = qlab;
  // A narrow format brings its levels; a wide one, too dense to list, is computed from its layout.
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  const exponentOf = m => {
    let e = Math.floor(Math.log2(m));
    while (2 ** e > m) e--;
    while (2 ** (e + 1) <= m) e++;
    return e;
  };
  const stepAt = (f, m) => 2 ** (Math.max(m > 0 ? exponentOf(m) : -Infinity, f.lowest) - f.mantissa);
  const nearestIndex = (levels, x) => {
    let a = 0, b = levels.length - 1;
    while (b - a > 1) { const c = (a + b) >> 1; if (levels[c] <= x) a = c; else b = c; }
    return x - levels[a] <= levels[b] - x ? a : b;
  };
  // {value, step}: the value nearest to x and the distance to its next one away from zero.
  const nearest = (f, x) => {
    if (f.levels) {
      const i = nearestIndex(f.levels, x), v = f.levels[i], j = v < 0 ? i - 1 : i + 1;
      const next = f.levels[j] ?? f.levels[v < 0 ? i + 1 : i - 1];
      return { value: v, step: Math.abs(next - v) };
    }
    const m = Math.min(Math.abs(x), f.max), value = Math.min(f.max, round(m / stepAt(f, m)) * stepAt(f, m));
    return { value: Math.sign(x) * value, step: stepAt(f, value) };
  };
  root.qlabNearest = (i, x) => nearest(data.formats[i], x);

  const state = { log: data.log, fit: data.fit, zoom: 0, at: 62, chosen: new Set(data.chosen), dark: 0 };
  const picked = () => data.formats.filter((_, i) => state.chosen.has(i));
  // Stretched: the largest value of each format lies at 1, as a quantizer's scale puts it.
  const unit = f => state.fit ? 1 / f.max : 1;
  const smallest = f => (f.levels ? f.levels.find(v => v > 0) : 2 ** (f.lowest - f.mantissa)) * unit(f);
  const range = () => {
    const chosen = picked(), top = Math.max(...chosen.map(f => f.max * unit(f))), low = Math.min(...chosen.map(smallest));
    if (state.log) {
      const span = Math.log10(top / low);
      // Leave at least a tenth of the decades, so that the axis never closes.
      const high = top * 10 ** (-state.zoom / 100 * span * 0.9);
      return [low, high];
    }
    const limit = top * 10 ** (-state.zoom / 100 * Math.min(6, Math.max(1, Math.log10(top / low))));
    const negative = chosen.some(f => f.signed);
    return [negative ? -limit : 0, limit];
  };
  let right = 626;
  const left = 82, rowHeight = 42, head = 20;
  const x = (v, [low, high]) => state.log
    ? left + Math.log(v / low) / Math.log(high / low) * (right - left)
    : left + (v - low) / (high - low) * (right - left);
  const back = (share, [low, high]) => state.log ? low * (high / low) ** share : low + share * (high - low);
  const say = v => (v === 0 ? "0" : Math.abs(v) >= 1e5 || Math.abs(v) < 1e-3 ? v.toExponential(2) : number(v, 6)).replace(/-/g, "−");

  const logTicks = (low, high) => {
    const decades = Math.log10(high / low), every = Math.max(1, Math.ceil(decades / (right < 450 ? 4 : 7))), found = [];
    for (let e = Math.ceil(Math.log10(low) - 1e-9); e <= Math.log10(high) + 1e-9; e++)
      if (((e % every) + every) % every === 0) found.push(10 ** e);
    return found;
  };
  const linearTicks = (low, high) => {
    const raw = (high - low) / (right < 450 ? 3 : 5), power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw), found = [];
    for (let k = Math.ceil(low / step - 1e-9); k * step <= high + step * 1e-9; k++) found.push(k * step);
    return found;
  };
  const svg = svgEl("svg", { role: "img", style: "touch-action: pan-y" });
  const marks = svgEl("g");
  const rows = el("tbody"), reading = el("p", { class: "qfig-read", "aria-live": "polite" });
  const table = el("table", {}, el("thead", {}, el("tr", {}, ...["format", "nearest value", "step there", "step / value", "values shown"]
    .map(t => el("th", { scope: "col" }, t)))), rows);
  let counts = [];

  // Values of f within the window, as drawn; null when they lie too dense to be told apart.
  const within = (f, [low, high]) => {
    const u = unit(f);
    if (f.levels) return f.levels.map(v => v * u).filter(v => v >= low - 1e-12 * (high - low) * (state.log ? low / high : 1) && v <= high * (1 + 1e-12));
    const perOctave = 2 ** f.mantissa, octaves = Math.log2(high / Math.max(state.log ? low : high / 64, 1e-300));
    if (perOctave * octaves > 600) return null;
    const found = [];
    let v = state.log ? Math.max(low / u, 2 ** (f.lowest - f.mantissa)) : low / u;
    for (let k = 0; k < 4000 && v <= Math.min(high / u, f.max) * (1 + 1e-12); k++) {
      const n = nearest(f, v).value;
      found.push(n * u);
      v = n + stepAt(f, Math.abs(n));
    }
    return found;
  };
  const draw = () => {
    const window_ = range(), chosen = picked(), height = head + chosen.length * rowHeight + 46;
    // As many units as pixels, so that the text keeps its size on a phone.
    const width = Math.max(300, Math.min(640, root.clientWidth || 640));
    right = width - 14;
    svg.setAttribute("viewBox", `0 0 ${width} ${height}`);
    svg.setAttribute("aria-label", `Values of ${chosen.map(f => f.label).join(", ")} on a ${state.log ? "logarithmic" : "linear"} axis`);
    svg.replaceChildren();
    const bottom = head + chosen.length * rowHeight;
    for (const t of state.log ? logTicks(...window_) : linearTicks(...window_)) {
      svg.append(svgEl("line", { class: "grid", x1: x(t, window_), x2: x(t, window_), y1: 8, y2: bottom }),
        svgEl("text", { x: x(t, window_), y: bottom + 18, "text-anchor": "middle" },
          state.log ? (t >= 1e-3 && t < 1e4 ? String(Number(t.toPrecision(3))) : `1e${Math.round(Math.log10(t))}`.replace("-", "−")) : say(t)));
    }
    svg.append(svgEl("text", { x: (left + right) / 2, y: bottom + 38, "text-anchor": "middle" },
      (state.fit ? "value / largest value of the format" : "value") + (state.log ? " (positive half, logarithmic)" : "")));
    counts = chosen.map((f, r) => {
      const y = head + r * rowHeight + 16, color = colors[r % colors.length], values = within(f, window_);
      svg.append(svgEl("text", { x: 4, y: y + 5 }, f.label),
        svgEl("line", { class: "grid", x1: left, x2: right, y1: y, y2: y }));
      if (values === null) {
        const from = Math.max(state.log ? smallest(f) : -f.max * unit(f), window_[0]), to = Math.min(f.max * unit(f), window_[1]);
        if (to > from) svg.append(svgEl("rect", { x: x(from, window_), width: Math.max(1, x(to, window_) - x(from, window_)), y: y - 11,
          height: 22, fill: color, "fill-opacity": 0.45 }));
        return "too dense to draw";
      }
      const d = values.map(v => `M${x(v, window_).toFixed(2)} ${y - 13}v26`).join("");
      svg.append(svgEl("path", { d, stroke: color, "stroke-width": values.length > 200 ? 0.6 : values.length > 100 ? 0.9 : 1.6, fill: "none" }));
      return String(values.length);
    });
    svg.append(marks);
    mark();
  };
  const mark = () => {
    const window_ = range(), chosen = picked(), v = back(state.at / 100, window_), bottom = head + chosen.length * rowHeight;
    marks.replaceChildren(svgEl("line", { class: "axis", x1: x(v, window_), x2: x(v, window_), y1: 4, y2: bottom, "stroke-dasharray": "4 3" }));
    rows.replaceChildren(...chosen.map((f, r) => {
      const u = unit(f), { value, step } = nearest(f, v / u), shown = value * u;
      if (shown <= window_[1] && shown >= window_[0] && (!state.log || shown > 0)) marks.append(svgEl("circle", { cx: x(shown, window_),
        cy: head + r * rowHeight + 16, r: 5, fill: colors[r % colors.length], stroke: "currentColor", "stroke-width": 1.5 }));
      return el("tr", {}, ...[f.label, say(shown), say(step * u), value ? (100 * step / Math.abs(value)).toPrecision(3) + " %" : "-", counts[r]]
        .map((t, i) => el(i ? "td" : "th", i ? {} : { scope: "row" }, t)));
    }));
    reading.replaceChildren("At ", el("strong", {}, say(v)), " each format offers:");
  };
  const position = slider("Read at", 0, 100, state.at, v => v + " % of the axis", v => { state.at = v; mark(); }, 0.5);
  const follow = e => {
    const box = svg.getBoundingClientRect(), share = ((e.clientX - box.left) / box.width * (right + 14) - left) / (right - left);
    const input = position.querySelector("input");
    input.value = Math.max(0, Math.min(100, share * 100));
    input.dispatchEvent(new Event("input"));
  };
  svg.addEventListener("pointermove", follow);
  svg.addEventListener("pointerdown", follow);
  const toggles = el("div", { class: "qruler", role: "group", "aria-label": "Formats shown" }, ...data.formats.map((f, i) => {
    const b = el("button", { type: "button", "aria-pressed": state.chosen.has(i), "aria-label": `Show ${f.label}` }, f.label);
    b.addEventListener("click", () => {
      if (!state.chosen.has(i)) state.chosen.add(i);
      else if (state.chosen.size > 1) state.chosen.delete(i);
      b.setAttribute("aria-pressed", state.chosen.has(i));
      draw();
    });
    return b;
  }));
  root.append(el("style", {}, `
.qruler { display: flex; flex-wrap: wrap; gap: .35rem; margin-bottom: .7rem; }
.qfig .qruler button { font-size: .8rem; cursor: pointer; border-style: dashed; }
.qfig .qruler button[aria-pressed=true] { border: 2px solid var(--q-accent, #0b5d7a); font-weight: 600; }
.qruler-table { overflow-x: auto; } .qruler-table td { text-align: right; white-space: nowrap; }
.qruler-table th, .qruler-table td { padding: .2rem .6rem; } .qruler-table th { white-space: nowrap; }`),
    toggles,
    el("div", { class: "qfig-controls" },
      choice("Axis", ["linear", "logarithmic"], state.log ? 1 : 0, i => { state.log = i === 1; draw(); }),
      choice("Scale", ["own values", "largest value at 1"], state.fit ? 1 : 0, i => { state.fit = i === 1; draw(); }),
      slider("Zoom towards zero", 0, 100, 0, v => v + " %", v => { state.zoom = v; draw(); }),
      position),
    svg, reading, el("div", { class: "qruler-table" }, table));
  draw();
  addEventListener("resize", draw);
});
