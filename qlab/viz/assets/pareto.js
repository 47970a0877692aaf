// Quality against cost, and the front that no other configuration beats.
qlab.define("pareto", (root, data) => {
  const { el, svgEl, choice, number, colors, path } = qlab;
  const families = [...new Set(data.rows.map(r => r.family))];
  // Color and shape together: more families than colors that the eye keeps apart.
  const shapes = [
    (x, y, s) => `M${x - s} ${y}a${s} ${s} 0 1 0 ${2 * s} 0a${s} ${s} 0 1 0 ${-2 * s} 0Z`,
    (x, y, s) => `M${x - s} ${y - s}h${2 * s}v${2 * s}h${-2 * s}Z`,
    (x, y, s) => `M${x} ${y - 1.3 * s}L${x + 1.3 * s} ${y}L${x} ${y + 1.3 * s}L${x - 1.3 * s} ${y}Z`,
    (x, y, s) => `M${x} ${y - 1.2 * s}L${x + 1.2 * s} ${y + s}H${x - 1.2 * s}Z`,
  ];
  const look = family => {
    const i = families.indexOf(family);
    return { color: colors[i % colors.length], shape: shapes[Math.floor(i / colors.length + i) % shapes.length] };
  };
  const state = { measure: 0, cost: 0, family: 0, budget: null };
  const read = qlab.readout(), about = el("p", { class: "qfig-read" }), holder = el("div"), knobHolder = el("div");
  knobHolder.style.flex = "1 1 14rem";

  const log = values => Math.min(...values) > 0 && Math.max(...values) / Math.min(...values) > 8;
  const span = (values, logarithmic) => {
    const low = Math.min(...values), high = Math.max(...values), pad = (high - low) * 0.07 || Math.abs(high) * 0.1 || 1;
    return logarithmic ? [low / 1.15, high * 1.15] : [low - pad, high + pad];
  };
  const current = () => {
    const [key, label, up] = data.measures[state.measure], [costKey, costLabel, costUp] = data.costs[state.cost];
    const rows = data.rows.filter(r => r[key] && r[costKey]);
    const cost = r => r[costKey][0], value = r => r[key][0];
    const cheaper = (a, b) => costUp ? a > b : a < b, better = (a, b) => up ? a > b : a < b;
    const sorted = [...rows].sort((a, b) => (costUp ? cost(b) - cost(a) : cost(a) - cost(b)) || (up ? value(b) - value(a) : value(a) - value(b)));
    const front = [];
    for (const r of sorted) if (!front.length || better(value(r), value(front[front.length - 1]))) front.push(r);
    return { key, label, up, costKey, costLabel, costUp, rows, sorted, front, cost, value, cheaper, better };
  };
  const words = (r, now) => `${r.name}: ${now.label} ${number(now.value(r), 4)} ` +
    `(95% of resamples: ${number(r[now.key][1], 4)} to ${number(r[now.key][2], 4)}), ${now.costLabel} ${number(now.cost(r), 3)}`;
  const standing = (r, now) => {
    if (now.front.includes(r)) return "On the front.";
    const by = now.front.find(o => !now.better(now.value(r), now.value(o)) && !now.cheaper(now.cost(r), now.cost(o)));
    return by ? `Beaten by ${by.name}.` : "Not on the front.";
  };
  const drawing = () => {
    const now = current();
    if (!now.rows.length) { holder.replaceChildren(); read.textContent = "Not measured."; return; }
    const xs = now.rows.map(now.cost), 
      // What is far worse than all of the front would leave no room for the rest: it stands at the edge.
      cap = now.up ? Infinity : 1.4 * Math.max(...now.front.map(now.value)), height = r => Math.min(now.value(r), cap),
      ys = now.rows.map(height), beyond = now.rows.filter(r => now.value(r) > cap).length;
    const xLog = log(xs), yLog = log(ys);
    const plot = qlab.plot({ label: `${now.label} against ${now.costLabel}`, xLabel: now.costLabel, yLabel: now.label,
      xRange: span(xs, xLog), yRange: span(ys, yLog), xLog, yLog, height: 400 });
    const { x, y, layer, svg } = plot;
    const steps = [];
    now.front.forEach((r, i) => {
      if (i) steps.push([x(now.cost(r)), y(now.value(now.front[i - 1]))]);
      steps.push([x(now.cost(r)), y(now.value(r))]);
    });
    layer.append(path(steps, { stroke: "currentColor", "stroke-opacity": 0.45, "stroke-dasharray": "4 3" }));
    const limit = svgEl("line", { y1: 12, y2: 352, stroke: "currentColor", "stroke-width": 1.5, "stroke-opacity": 0.6 });
    const bar = svgEl("line", { stroke: "currentColor", "stroke-width": 2 });
    const ring = svgEl("circle", { r: 10, fill: "none", stroke: "currentColor", "stroke-width": 2 });
    layer.append(limit, bar, ring);
    const chosen = state.family ? families[state.family - 1] : null;
    const marks = [];
    const mark = r => {
      const px = x(now.cost(r)), py = y(height(r));
      ring.setAttribute("cx", px); ring.setAttribute("cy", py);
      bar.setAttribute("x1", px); bar.setAttribute("x2", px);
      const inside = v => Math.max(12, Math.min(352, y(yLog ? Math.max(v, 1e-12) : v)));
      bar.setAttribute("y1", inside(r[now.key][1])); bar.setAttribute("y2", inside(r[now.key][2]));
    };
    now.sorted.forEach((r, i) => {
      const { color, shape } = look(r.family), faded = chosen && r.family !== chosen;
      const dot = svgEl("path", { d: shape(x(now.cost(r)), y(height(r)), now.front.includes(r) ? 6 : 4.5), fill: color,
        "fill-opacity": faded ? 0.12 : 0.9, stroke: now.front.includes(r) ? "currentColor" : "none", "stroke-width": 1.2,
        tabindex: i === 0 ? 0 : -1, role: "img", "aria-label": `${words(r, now)}. ${standing(r, now)}`, "data-name": r.name });
      const say = () => { read.textContent = `${words(r, now)}. ${standing(r, now)}`; mark(r); };
      dot.addEventListener("focus", say);
      dot.addEventListener("pointerenter", say);
      marks.push(dot);
      layer.append(dot);
    });
    holder.replaceChildren(svg);
    holder.onkeydown = e => {
      const i = marks.indexOf(document.activeElement), next = { ArrowRight: i + 1, ArrowLeft: i - 1 }[e.key];
      if (i >= 0 && next !== undefined && marks[next]) {
        marks[i].setAttribute("tabindex", -1); marks[next].setAttribute("tabindex", 0); marks[next].focus(); e.preventDefault();
      }
    };
    const tell = () => {
      const at = now.front[Math.min(state.budget, now.front.length - 1)];
      limit.setAttribute("x1", x(now.cost(at))); limit.setAttribute("x2", x(now.cost(at)));
      mark(at);
      read.replaceChildren(`${now.costUp ? "At least" : "Up to"} `, el("strong", {}, number(now.cost(at), 3)), ` (${now.costLabel}), the best is `,
        el("strong", {}, at.name), `: ${now.label} `, el("strong", {}, number(now.value(at), 4)),
        `, 95% of resamples from ${number(at[now.key][1], 4)} to ${number(at[now.key][2], 4)}.`);
    };
    if (state.budget === null || state.budget >= now.front.length) state.budget = Math.floor(now.front.length / 2);
    knobHolder.replaceChildren(qlab.slider("Budget", 0, now.front.length - 1, state.budget,
      i => number(now.cost(now.front[i]), 3), i => { state.budget = i; tell(); }));
    about.textContent = `${now.rows.length} configurations, ${now.front.length} of them on the front. ` +
      `${now.up ? "Higher" : "Lower"} is better; ${now.costUp ? "right" : "left"} is cheaper.` +
      (beyond ? ` At the upper edge: ${beyond} that are worse than fits here.` : "") +
      (state.family ? ` Marked: ${families[state.family - 1]}.` : "");
    tell();
  };
  const legend = el("p", { class: "qfig-read" });
  families.forEach(family => {
    const { color, shape } = look(family);
    const key = svgEl("svg", { viewBox: "0 0 14 14", style: "display:inline-block;width:14px;height:14px;margin-right:.3em;vertical-align:-2px", "aria-hidden": "true" });
    key.append(svgEl("path", { d: shape(7, 7, 5), fill: color }));
    const entry = el("span", { style: "display:inline-block;margin-right:1em" }, key, family);
    legend.append(entry, " ");
  });
  root.append(el("div", { class: "qfig-controls" },
      choice("Quality", data.measures.map(m => m[1]), 0, i => { state.measure = i; state.budget = null; drawing(); }),
      choice("Cost", data.costs.map(m => m[1]), 0, i => { state.cost = i; state.budget = null; drawing(); }),
      choice("Family", ["all", ...families], 0, i => { state.family = i; drawing(); }), knobHolder),
    holder, legend, read, about);
  drawing();
});
