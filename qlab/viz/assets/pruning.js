// Which weights of a small matrix go, what it costs the outputs, and how many bits are left.
qlab.define("pruning", (root, data) => {
  const { el, svgEl, slider, choice, colors, path } = qlab;
  const w = data.weight, h = data.hessian, u = data.factor, R = w.length, C = w[0].length;
  const ways = ["magnitude", "wanda", "sparsegpt"];
  const labels = ["smallest weights", "weights × inputs (Wanda)", "SparseGPT: others pay"];
  const grid = f => Array.from({ length: R }, (_, i) => Array.from({ length: C }, (_, j) => f(i, j)));
  // The places with the lowest scores; of equal ones the first go.
  const lowest = (places, score, count) => places.map((p, k) => [score(...p), k, p])
    .sort((a, b) => a[0] - b[0] || a[1] - b[1]).slice(0, count).map(t => t[2]);
  const span = (from, to) => Array.from({ length: to - from }, (_, k) => from + k);
  const error = now => {
    let lost = 0, all = 0;
    for (let i = 0; i < R; i++) for (let a = 0; a < C; a++) for (let b = 0; b < C; b++) {
      lost += (now[i][a] - w[i][a]) * h[a][b] * (now[i][b] - w[i][b]);
      all += w[i][a] * h[a][b] * w[i][b];
    }
    return lost / all;
  };
  const run = (way, pattern, share) => {
    const now = grid((i, j) => w[i][j]), gone = grid(() => false);
    const every = w.flatMap((r, i) => r.map((_, j) => [i, j]));
    const take = found => found.forEach(([i, j]) => { gone[i][j] = true; });
    const size = n => Math.floor(n * share + 1e-9);
    const norm = j => Math.sqrt(h[j][j]);
    if (way < 2) {
      const score = (i, j) => Math.abs(w[i][j]) * (way ? norm(j) : 1);
      if (pattern) for (let i = 0; i < R; i++) for (let j = 0; j < C; j += 4)
        take(lowest(span(j, j + 4).map(k => [i, k]), score, 2));
      else if (way === 0) take(lowest(every, score, size(R * C)));
      else for (let i = 0; i < R; i++) take(lowest(span(0, C).map(j => [i, j]), score, size(C)));
      every.forEach(([i, j]) => { if (gone[i][j]) now[i][j] = 0; });
    } else {
      const score = (i, j) => (now[i][j] / u[j][j]) ** 2;
      if (!pattern) take(lowest(every, score, size(R * C)));
      for (let c = 0; c < C; c++) {
        if (pattern && c % 4 === 0) for (let i = 0; i < R; i++)
          take(lowest(span(c, c + 4).map(k => [i, k]), score, 2));
        for (let i = 0; i < R; i++) if (gone[i][c]) {
          const e = now[i][c] / u[c][c];
          for (let j = c + 1; j < C; j++) now[i][j] -= e * u[c][j];
          now[i][c] = 0;
        }
      }
    }
    return { now, gone, count: gone.flat().filter(Boolean).length, error: error(now) };
  };
  root.qlabRun = (way, pattern, share) => { const r = run(way, pattern, share); return [r.count, r.error]; };

  const state = { way: 0, pattern: 0, share: 50, bits: 0 }, bits = [16, 8, 4];
  const phone = root.clientWidth && root.clientWidth < 480;
  const width = phone ? 390 : 640, left = 4, bars = 34, cell = (width - 2 * left) / C, high = phone ? 15 : 20;
  const most = Math.max(...w.flat().map(Math.abs)), loud = Math.max(...h.map((r, j) => Math.sqrt(r[j])));
  const map = svgEl("svg", { viewBox: `0 0 ${width} ${bars + R * high + 4}`, role: "img" });
  const shares = [0, 10, 20, 30, 40, 50, 60, 70, 80, 90];
  const curves = ways.map((_, k) => shares.map(s => run(k, 0, s / 100).error));
  const plot = qlab.plot({ label: "Error of the outputs against the share of weights that go",
    xLabel: "weights that go (%)", yLabel: "output error (%)", xRange: [0, 90],
    yRange: [0, 100 * Math.min(1.2, Math.max(...curves.flat()))], width: phone ? 380 : 640, height: 230,
    xTicks: phone ? [0, 30, 60, 90] : shares });
  const top = 100 * Math.min(1.2, Math.max(...curves.flat()));
  curves.forEach((c, k) => plot.layer.append(path(c.map((v, i) => [plot.x(shares[i]), plot.y(Math.min(top, 100 * v))]),
    { stroke: colors[k], "stroke-dasharray": ["", "7 4", "2 3"][k], "stroke-width": 2.4 })));
  const mark = svgEl("circle", { r: 6 });
  plot.layer.append(mark);
  const read = qlab.readout();
  const update = () => {
    const share = state.pattern ? 0.5 : state.share / 100, r = run(state.way, state.pattern, share);
    map.replaceChildren();
    map.setAttribute("aria-label", `${r.count} of ${R * C} weights are crossed out`);
    for (let j = 0; j < C; j++) {
      const tall = (bars - 6) * Math.sqrt(h[j][j]) / loud;
      map.append(svgEl("rect", { x: left + j * cell + 1.5, y: bars - 3 - tall, width: cell - 3, height: tall,
        fill: "currentColor", "fill-opacity": 0.45 }));
      for (let i = 0; i < R; i++) {
        const x = left + j * cell, y = bars + i * high, v = r.now[i][j];
        map.append(svgEl("rect", { x: x + 0.8, y: y + 0.8, width: cell - 1.6, height: high - 1.6, rx: 2,
          fill: v < 0 ? colors[0] : colors[1], "fill-opacity": Math.min(1, 0.08 + 0.92 * Math.abs(v) / most).toFixed(3) * !r.gone[i][j],
          stroke: "currentColor", "stroke-opacity": 0.25 }));
        if (r.gone[i][j]) map.append(svgEl("path", { stroke: "currentColor", "stroke-opacity": 0.55,
          d: `M${x + cell * 0.3} ${y + high * 0.3}L${x + cell * 0.7} ${y + high * 0.7}M${x + cell * 0.7} ${y + high * 0.3}L${x + cell * 0.3} ${y + high * 0.7}` }));
      }
    }
    shareControl.querySelector("input").disabled = !!state.pattern;
    shareControl.style.opacity = state.pattern ? 0.5 : 1;
    mark.setAttribute("cx", plot.x(100 * share));
    mark.setAttribute("cy", plot.y(Math.min(top, 100 * r.error)));
    mark.setAttribute("fill", colors[state.way]);
    const b = bits[state.bits], kept = 1 - r.count / (R * C), sparse = b * (state.pattern ? 0.5 : kept) + 1;
    read.replaceChildren(`${r.count} of ${R * C} weights go (${(100 - 100 * kept).toFixed(0)}%). Output error `,
      el("strong", {}, `${(100 * r.error).toFixed(2)}%`), ". Stored with ", state.pattern ? "2-bit indices: " : "a bit for each place: ",
      el("strong", {}, `${sparse.toFixed(2)} bits per weight`), ` (${b} × ${(state.pattern ? 0.5 : kept).toFixed(2)} + 1)`,
      sparse < b ? `, against ${b} dense.` : `: no less than the ${b} of a dense one.`);
    root.dataset.count = r.count;
    root.dataset.error = r.error;
  };
  const shareControl = slider("Weights that go", 0, 90, state.share, v => `${v}%`, v => { state.share = v; update(); }, 5);
  root.append(el("div", { class: "qfig-controls" },
    choice("Who decides", labels, 0, v => { state.way = v; update(); }),
    choice("Places", ["anywhere", "2 of each 4 (2:4)"], 0, v => { state.pattern = v; update(); }),
    shareControl,
    choice("Bits of a weight that stays", bits.map(b => `${b}`), 0, v => { state.bits = v; update(); })),
  map, read, plot.svg,
  el("p", { class: "qfig-read", style: "font-size:.85rem" }, "Rows: outputs; columns: inputs, the gray bar above is the size of each. "
    + "Orange: positive; blue: negative; crossed out: gone. Curves: solid for the smallest weights, dashed for Wanda, dotted for SparseGPT, each anywhere."));
  update();
});
