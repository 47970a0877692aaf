// Where the error of a matrix lies, for each way to cut it into blocks that share a scale.
qlab.define("heatmap", (root, data) => {
  const { el, svgEl, slider, choice, number } = qlab;
  const R = data.rows, C = data.columns, raw = atob(data.weights);
  const w = new Float64Array(R * C);
  for (let i = 0; i < w.length; i++) {
    const v = raw.charCodeAt(2 * i) | raw.charCodeAt(2 * i + 1) << 8;
    w[i] = (v > 32767 ? v - 65536 : v) * data.unit;
  }
  const power = w.reduce((a, b) => a + b * b, 0);
  // Half to even, as the package rounds.
  const round = v => { const r = Math.round(v); return Math.abs(v % 1) === 0.5 && r % 2 ? r - 1 : r; };
  // The nearest float16 of a positive number in its range.
  const half = v => { const u = 2 ** (Math.max(Math.floor(Math.log2(v)), -14) - 10); return round(v / u) * u; };
  const run = (bits, br, bc) => {
    const q = 2 ** (bits - 1) - 1, wide = C / bc, scale = new Float64Array(R / br * wide), error = new Float64Array(R * C);
    for (let i = 0; i < R; i++) for (let j = 0; j < C; j++) {
      const k = Math.floor(i / br) * wide + Math.floor(j / bc);
      scale[k] = Math.max(scale[k], Math.abs(w[i * C + j]));
    }
    for (let k = 0; k < scale.length; k++) scale[k] = scale[k] === 0 ? 1 : Math.max(half(scale[k] / q), 2 ** -24);
    let noise = 0;
    for (let i = 0; i < R; i++) for (let j = 0; j < C; j++) {
      const s = scale[Math.floor(i / br) * wide + Math.floor(j / bc)], v = w[i * C + j];
      const e = v - Math.max(-q, Math.min(q, round(v / s))) * s;
      error[i * C + j] = Math.abs(e);
      noise += e * e;
    }
    return { scale, error, wide, br, bc, sqnr: 10 * Math.log10(power / noise), bits: bits + 16 / (br * bc) };
  };
  root.qlabRun = (bits, br, bc) => { const r = run(bits, br, bc); return [r.sqnr, r.bits, r.scale.length, r.error.reduce((a, b) => a + b, 0)]; };

  const kinds = [
    ["tensor (all)", () => [R, C], () => "one scale for the matrix"],
    ["channel (row)", () => [1, C], () => "a scale a row"],
    ["channel1 (column)", () => [R, 1], () => "a scale a column"],
    ["group (in a row)", g => [1, g], g => `groups of ${g}`],
    ["block (square)", g => [g, g], g => `blocks of ${g} \u00d7 ${g}`],
  ];
  const shown = ["error", "half a step"];
  const means = ["|w \u2212 \u0175| of each weight", "half a step of each block, the largest error it allows"];
  const state = { kind: 3, size: data.sizes.length > 3 ? 3 : data.sizes.length - 1, bits: 4, show: 0 };
  // Cividis, told apart with any color vision, and bright enough on a dark page.
  const stops = [[0, 34, 78], [18, 53, 112], [59, 73, 108], [87, 93, 109], [112, 113, 115], [138, 134, 120],
    [165, 156, 116], [195, 179, 105], [225, 204, 85], [254, 232, 56]];
  const color = t => {
    const at = Math.max(0, Math.min(0.9999, t)) * (stops.length - 1), k = Math.floor(at), f = at - k;
    return stops[k].map((a, i) => Math.round(a + (stops[k + 1][i] - a) * f));
  };
  const palette = Array.from({ length: 256 }, (_, i) => color(i / 255));

  const N = Math.min(32, R, C), CELL = 12;
  const at = { row: 0, column: 0 };
  const aim = (row, column) => {
    at.row = Math.max(0, Math.min(R - N, Math.round(row - N / 2)));
    at.column = Math.max(0, Math.min(C - N, Math.round(column - N / 2)));
  };
  aim(...data.far);
  const map = el("canvas", { width: C, height: R, style: "display:block;width:100%;image-rendering:pixelated" });
  const lens = el("canvas", { width: N * CELL, height: N * CELL, role: "img",
    style: "display:block;width:100%;image-rendering:pixelated" });
  const over = svgEl("svg", { viewBox: `0 0 ${C} ${R}`, tabindex: 0, role: "application",
    style: "position:absolute;inset:0;width:100%;height:100%;cursor:crosshair;touch-action:pan-y" });
  const lines = svgEl("g"), frame = svgEl("g");
  over.append(lines, frame);
  const where = el("span", { "aria-live": "polite" });
  const box = (part, ...text) => el("div", { style: "flex:1 1 15rem;max-width:27rem;min-width:0" }, part,
    el("p", { class: "qfig-read", style: "font-size:.85rem;margin:.3rem 0 0" }, ...text));
  const views = el("div", { style: "display:flex;flex-wrap:wrap;gap:1rem;align-items:flex-start" },
    box(el("div", { style: "position:relative;line-height:0" }, map, over), `${data.name}: ${R} rows (outputs), ${C} columns (inputs)`),
    box(lens, where));
  const legend = el("p", { class: "qfig-read", style: "font-size:.85rem" });
  const ramp = `linear-gradient(to right,${stops.map(c => `rgb(${c.join(",")})`).join(",")})`;
  const read = qlab.readout();

  let result, top;
  const value = (i, j) => state.show ? result.scale[Math.floor(i / result.br) * result.wide + Math.floor(j / result.bc)] / 2
    : result.error[i * C + j];
  const shade = (i, j) => palette[Math.min(255, Math.floor(value(i, j) / top * 255.99))];
  const paintMap = () => {
    const g = map.getContext("2d"), image = g.createImageData(C, R);
    for (let i = 0; i < R; i++) for (let j = 0; j < C; j++) image.data.set([...shade(i, j), 255], 4 * (i * C + j));
    g.putImageData(image, 0, 0);
    // Borders of the blocks where they would not cover the map.
    lines.replaceChildren();
    const border = (x1, y1, x2, y2) => lines.append(svgEl("line", { x1, y1, x2, y2, stroke: "#fff",
      "stroke-opacity": 0.75, "stroke-width": C / 500 }));
    if (result.bc >= 8) for (let j = result.bc; j < C; j += result.bc) border(j, 0, j, R);
    if (result.br >= 8) for (let i = result.br; i < R; i += result.br) border(0, i, C, i);
  };
  const paintLens = () => {
    const g = lens.getContext("2d");
    for (let i = 0; i < N; i++) for (let j = 0; j < N; j++) {
      g.fillStyle = `rgb(${shade(at.row + i, at.column + j).join(",")})`;
      g.fillRect(j * CELL, i * CELL, CELL, CELL);
    }
    const border = (x, y, wide, high) => {
      g.fillStyle = "#fff";
      g.fillRect(x, y, wide, high);
    };
    for (let j = 1; j < N; j++) if ((at.column + j) % result.bc === 0) border(j * CELL - 1, 0, 2, N * CELL);
    for (let i = 1; i < N; i++) if ((at.row + i) % result.br === 0) border(0, i * CELL - 1, N * CELL, 2);
    const side = C / 160;
    frame.replaceChildren(...[["#000", side * 2], ["#fff", side]].map(([stroke, width]) => svgEl("rect", { x: at.column,
      y: at.row, width: N, height: N, fill: "none", stroke, "stroke-width": width })));
    const text = `the lens: rows ${at.row} to ${at.row + N - 1}, columns ${at.column} to ${at.column + N - 1}`;
    where.textContent = text + "; white lines are borders of blocks";
    lens.setAttribute("aria-label", `${means[state.show]}, ${text}`);
    over.setAttribute("aria-label", `Map of the matrix. ${text}. Arrow keys move the lens.`);
  };
  const update = () => {
    const g = data.sizes[state.size], [br, bc] = kinds[state.kind][1](g), words = kinds[state.kind][2](g);
    result = run(state.bits, br, bc);
    const one = run(state.bits, R, C);
    top = one.scale[0] / 2;
    sizeControl.querySelector("input").disabled = state.kind < 3;
    sizeControl.style.opacity = state.kind < 3 ? 0.5 : 1;
    paintMap();
    paintLens();
    legend.replaceChildren("0 ", el("span", { style: `display:inline-block;vertical-align:middle;height:.9em;width:7rem;`
      + `max-width:40%;background:${ramp}` }), ` ${number(top)}: ${means[state.show]}`);
    const gain = result.sqnr - one.sqnr;
    read.replaceChildren(`${state.bits} bits, ${words}: SQNR `, el("strong", {}, `${result.sqnr.toFixed(1)} dB`), " at ",
      el("strong", {}, `${Number(result.bits.toFixed(4))} bits per weight`),
      ` (${state.bits} + 16 / ${(br * bc).toLocaleString("en")}). ${result.scale.length.toLocaleString("en")} scale${result.scale.length > 1 ? "s" : ""}`
      + (state.kind ? `; ${gain >= 0 ? "+" : "\u2212"}${Math.abs(gain).toFixed(1)} dB against one for the whole matrix.` : "."));
  };
  const move = event => {
    const r = over.getBoundingClientRect();
    aim((event.clientY - r.top) / r.height * R, (event.clientX - r.left) / r.width * C);
    paintLens();
  };
  over.addEventListener("pointerdown", move);
  over.addEventListener("pointermove", event => { if (event.buttons) move(event); });
  over.addEventListener("keydown", event => {
    const by = { ArrowUp: [-4, 0], ArrowDown: [4, 0], ArrowLeft: [0, -4], ArrowRight: [0, 4] }[event.key];
    if (!by) return;
    event.preventDefault();
    aim(at.row + N / 2 + by[0], at.column + N / 2 + by[1]);
    paintLens();
  });
  const sizeControl = slider("Size", 0, data.sizes.length - 1, state.size, k => String(data.sizes[k]),
    k => { state.size = k; update(); });
  root.append(el("div", { class: "qfig-controls" },
    choice("Who shares a scale", kinds.map(k => k[0]), state.kind, k => { state.kind = k; update(); }),
    sizeControl,
    slider("Bits", 2, 8, state.bits, b => `${b} bits`, b => { state.bits = b; update(); }),
    choice("Show", shown, state.show, k => { state.show = k; update(); })),
    views, legend, read);
  update();
});
