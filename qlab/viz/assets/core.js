// Shared by all figures: elements, controls, scales and axes. No library, no network.
window.qlab = window.qlab || (() => {
  const kinds = {};
  const waiting = [];
  const el = (name, attributes = {}, ...children) => {
    const node = document.createElement(name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    node.append(...children);
    return node;
  };
  const svgEl = (name, attributes = {}, text) => {
    const node = document.createElementNS("http://www.w3.org/2000/svg", name);
    for (const [k, v] of Object.entries(attributes)) node.setAttribute(k, v);
    if (text !== undefined) node.textContent = text;
    return node;
  };
  const number = (x, digits = 3) => {
    if (x === null || !isFinite(x)) return "-";
    if (x !== 0 && (Math.abs(x) >= 1e6 || Math.abs(x) < 1e-3)) return x.toExponential(digits - 1);
    return String(Number(x.toPrecision(digits)));
  };
  const colors = ["#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9"];

  // A slider with its label and value; `format` turns the slider's position into text.
  const slider = (label, min, max, value, format, onInput, step = 1) => {
    const out = el("output", {}, format(value));
    const input = el("input", { type: "range", min, max, value, step, "aria-label": label });
    input.setAttribute("aria-valuetext", format(value));
    input.addEventListener("input", () => {
      out.textContent = format(+input.value);
      input.setAttribute("aria-valuetext", out.textContent);
      onInput(+input.value);
    });
    return el("label", {}, el("span", {}, label + ": ", out), input);
  };
  const choice = (label, options, value, onChange) => {
    const select = el("select", { "aria-label": label });
    options.forEach((text, i) => {
      const option = el("option", { value: i }, text);
      if (i === value) option.selected = true;
      select.append(option);
    });
    select.addEventListener("change", () => onChange(+select.value));
    return el("label", {}, el("span", {}, label), select);
  };
  // What a reader hears and reads after each change.
  const readout = () => el("p", { class: "qfig-read", "aria-live": "polite" });

  const ticks = (low, high, log) => {
    if (log) {
      const found = [];
      const decades = Math.log10(high / low);
      for (let e = Math.floor(Math.log10(low)); e <= Math.ceil(Math.log10(high)); e++)
        for (const m of decades > 3 ? [1] : decades > 1.2 ? [1, 3] : [1, 2, 5]) {
          const t = m * 10 ** e;
          if (t >= low * 0.999 && t <= high * 1.001) found.push(t);
        }
      return found;
    }
    const raw = (high - low) / 5, power = 10 ** Math.floor(Math.log10(raw));
    const step = [1, 2, 5, 10].map(m => m * power).find(s => s >= raw);
    const found = [];
    for (let t = Math.ceil(low / step - 1e-9) * step; t <= high + step * 1e-9; t += step)
      found.push(Math.abs(t) < step * 1e-9 ? 0 : t);
    return found;
  };
  // A drawing with axes: {svg, x, y, clear()}; x and y map data to pixels.
  const plot = ({ label, xLabel, yLabel, xRange, yRange, xLog, yLog, width = 640, height = 340,
                  xTicks, xFormat = number, yFormat = number }) => {
    const left = 66, right = 14, top = 12, bottom = 48;
    const scale = (range, log, from, to) => v => {
      const f = log ? Math.log10 : a => a;
      return from + (f(v) - f(range[0])) / (f(range[1]) - f(range[0])) * (to - from);
    };
    const x = scale(xRange, xLog, left, width - right), y = scale(yRange, yLog, height - bottom, top);
    const svg = svgEl("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": label });
    for (const t of xTicks || ticks(...xRange, xLog)) {
      svg.append(svgEl("line", { class: "grid", x1: x(t), x2: x(t), y1: top, y2: height - bottom }));
      svg.append(svgEl("text", { x: x(t), y: height - bottom + 18, "text-anchor": "middle" }, xFormat(t)));
    }
    for (const t of ticks(...yRange, yLog)) {
      svg.append(svgEl("line", { class: "grid", x1: left, x2: width - right, y1: y(t), y2: y(t) }));
      svg.append(svgEl("text", { x: left - 7, y: y(t) + 4, "text-anchor": "end" }, yFormat(t)));
    }
    svg.append(svgEl("line", { class: "axis", x1: left, x2: width - right, y1: height - bottom, y2: height - bottom }));
    svg.append(svgEl("line", { class: "axis", x1: left, x2: left, y1: top, y2: height - bottom }));
    svg.append(svgEl("text", { x: (left + width - right) / 2, y: height - 8, "text-anchor": "middle" }, xLabel));
    const yText = svgEl("text", { "text-anchor": "middle",
      transform: `translate(15 ${(top + height - bottom) / 2}) rotate(-90)` }, yLabel);
    svg.append(yText);
    const layer = svgEl("g");
    svg.append(layer);
    return { svg, layer, x, y, clear: () => layer.replaceChildren() };
  };
  const path = (points, attributes) =>
    svgEl("path", { fill: "none", "stroke-width": 2, ...attributes,
      d: points.map(([a, b], i) => `${i ? "L" : "M"}${a.toFixed(2)} ${b.toFixed(2)}`).join("") });

  const draw = id => {
    const root = document.getElementById(id);
    if (!root) return;
    const data = JSON.parse(root.querySelector('script[type="application/json"]').textContent);
    const body = root.querySelector(".qfig-body");
    body.replaceChildren();
    kinds[root.dataset.kind](body, data);
    root.dataset.ready = "yes";
  };
  return { define: (kind, f) => { kinds[kind] = f; }, draw, el, svgEl, number, colors, slider, choice,
           readout, plot, path };
})();
