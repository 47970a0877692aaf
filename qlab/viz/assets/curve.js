// A measure against bits per weight.
qlab.define("curve", (root, data) => {
  const { el, svgEl, choice, number, colors, path } = qlab;
  const groups = [...new Set(data.rows.map(r => r.group))];
  const read = qlab.readout(), holder = el("div");
  const drawMeasure = index => {
    const [key, label] = data.measures[index];
    const rows = data.rows.filter(r => r[key] !== null && r[data.x] !== null);
    const xs = rows.map(r => r[data.x]), ys = rows.map(r => r[key]);
    const log = Math.min(...ys) > 0 && Math.max(...ys) / Math.min(...ys) > 20;
    const low = Math.min(...ys), high = Math.max(...ys), pad = (high - low) * 0.08 || 1;
    const plot = qlab.plot({ label: `${label} against bits per weight`, xLabel: "bits per weight", yLabel: label,
      xRange: [Math.max(0.8, Math.min(...xs) * 0.85), Math.max(...xs) * 1.1], xLog: true,
      xTicks: [1, 2, 3, 4, 6, 8, 16, 32].filter(t => t >= Math.min(...xs) * 0.85 && t <= Math.max(...xs) * 1.1),
      yRange: log ? [low / 1.3, high * 1.3] : [low - pad, high + pad], yLog: log });
    const { x, y, layer } = plot;
    groups.forEach((group, g) => {
      const mine = rows.filter(r => r.group === group).sort((a, b) => a[data.x] - b[data.x]);
      const color = colors[g % colors.length];
      layer.append(path(mine.map(r => [x(r[data.x]), y(r[key])]), { stroke: color }));
      mine.forEach(r => {
        const text = `${r.name}: ${label} ${number(r[key], 4)} at ${number(r[data.x], 4)} bits per weight`;
        const dot = svgEl("circle", { cx: x(r[data.x]), cy: y(r[key]), r: 6, fill: color, tabindex: 0,
          role: "img", "aria-label": text });
        const say = () => { read.textContent = text; };
        dot.addEventListener("focus", say);
        dot.addEventListener("pointerenter", say);
        layer.append(dot);
      });
    });
    holder.replaceChildren(plot.svg);
    holder.onkeydown = e => {
      const dots = [...holder.querySelectorAll("circle")], i = dots.indexOf(document.activeElement);
      const next = { ArrowRight: i + 1, ArrowLeft: i - 1 }[e.key];
      if (next !== undefined && dots[next]) { dots[next].focus(); e.preventDefault(); }
    };
    read.textContent = `${rows.length} configurations.`;
  };
  const legend = el("p", { class: "qfig-read" });
  groups.forEach((group, g) => {
    const key = svgEl("svg", { viewBox: "0 0 14 14", style: "display:inline-block;width:14px;height:14px;margin-right:.3em", "aria-hidden": "true" });
    key.append(svgEl("circle", { cx: 7, cy: 7, r: 6, fill: colors[g % colors.length] }));
    legend.append(key, group + "   ");
  });
  root.append(el("div", { class: "qfig-controls" }, choice("Measure", data.measures.map(m => m[1]), 0, drawMeasure)),
    holder, legend, read);
  drawMeasure(0);
});
