// Levels of a codebook over a histogram: drag them, see where the error comes from.
qlab.define("levels", (root, data) => {
  const { el, svgEl, choice, number, colors, path } = qlab;
  const n = data.counts.length, amax = data.amax, total = data.counts.reduce((a, b) => a + b, 0);
  const centers = data.counts.map((_, i) => -amax + (i + 0.5) * 2 * amax / n);
  const peak = Math.max(...data.counts);
  // Index of the nearest of the ascending levels; halfway the lower one.
  const nearest = (levels, x) => {
    let best = 0;
    for (let j = 1; j < levels.length; j++) if (Math.abs(x - levels[j]) < Math.abs(x - levels[best])) best = j;
    return best;
  };
  const errors = levels => centers.map((x, i) => (x - levels[nearest(levels, x)]) ** 2 * data.counts[i] / total);
  const distortion = levels => errors(levels).reduce((a, b) => a + b, 0);
  root.qlabDistortion = distortion;

  // On a phone a narrower drawing keeps its labels large enough to read.
  const width = root.clientWidth && root.clientWidth < 480 ? 400 : 640;
  const rules = data.rules;
  const state = { size: data.sizes.length - 1, rule: 0, levels: [], chosen: -1 };
  const plot = qlab.plot({ label: `Histogram of ${data.name} values with the levels of a codebook`,
    xLabel: `${data.name} (σ)`, yLabel: "share of values (%)", xRange: [-amax, amax],
    yRange: [0, peak / total * 105], height: 270, width });
  const { x, y, layer, svg } = plot;
  layer.append(path([[x(-amax), y(0)], ...centers.map((c, i) => [x(c), y(data.counts[i] / total * 100)]),
    [x(amax), y(0)]], { stroke: colors[0], fill: colors[0], "fill-opacity": 0.3, "stroke-width": 1.5 }));
  const borders = svgEl("g"), handles = svgEl("g");
  layer.append(borders, handles);
  const below = qlab.plot({ label: "Squared error by place", xLabel: `${data.name} (σ)`,
    yLabel: "error (share)", xRange: [-amax, amax], yRange: [0, 1], height: 190, yFormat: () => "", width });
  const read = qlab.readout();

  const bottom = y(0), top = y(peak / total * 100);
  const fromPixel = p => {
    const left = x(-amax), right = x(amax);
    return -amax + (p - left) / (right - left) * 2 * amax;
  };
  const move = (j, value) => {
    // A level stays between its neighbors: the codes keep their order.
    const low = j ? state.levels[j - 1] : -amax, high = j + 1 < state.levels.length ? state.levels[j + 1] : amax;
    state.levels[j] = Math.max(low, Math.min(high, value));
    state.rule = -1;
    update();
  };
  const build = () => {
    handles.replaceChildren(...state.levels.map((_, j) => {
      const handle = svgEl("g", { role: "slider", tabindex: 0, "aria-label": `Level ${j + 1}`,
        "aria-valuemin": (-amax).toFixed(2), "aria-valuemax": amax.toFixed(2), style: "cursor: ew-resize; touch-action: none" });
      // A wide line that cannot be seen is easier to catch.
      handle.append(
        svgEl("line", { y1: bottom, y2: top, stroke: "transparent", "stroke-width": 16 }),
        svgEl("line", { y1: bottom, y2: top + 60, stroke: colors[1], "stroke-width": 2 }),
        svgEl("circle", { cy: top + 60, r: 6, fill: colors[1] }));
      handle.addEventListener("pointerdown", event => {
        handle.setPointerCapture(event.pointerId);
        handle.focus();
        event.preventDefault();
      });
      handle.addEventListener("pointermove", event => {
        if (!handle.hasPointerCapture(event.pointerId)) return;
        const at = new DOMPoint(event.clientX, event.clientY).matrixTransform(svg.getScreenCTM().inverse());
        move(j, fromPixel(at.x));
      });
      handle.addEventListener("keydown", event => {
        const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1, PageDown: -10, PageUp: 10 }[event.key];
        if (!step) return;
        event.preventDefault();
        move(j, state.levels[j] + step * amax / 200);
      });
      return handle;
    }));
  };
  const update = () => {
    [...handles.children].forEach((handle, j) => {
      const at = x(state.levels[j]);
      for (const line of handle.querySelectorAll("line")) { line.setAttribute("x1", at); line.setAttribute("x2", at); }
      handle.querySelector("circle").setAttribute("cx", at);
      handle.setAttribute("aria-valuenow", state.levels[j].toFixed(3));
      handle.setAttribute("aria-valuetext", state.levels[j].toFixed(3) + " standard deviations");
    });
    borders.replaceChildren(...state.levels.slice(1).map((v, j) => {
      const at = x((v + state.levels[j]) / 2);
      return svgEl("line", { x1: at, x2: at, y1: bottom, y2: bottom - 14, stroke: "currentColor", "stroke-opacity": 0.6 });
    }));
    const each = errors(state.levels), sum = each.reduce((a, b) => a + b, 0), most = Math.max(...each, 1e-30);
    below.clear();
    below.layer.append(path([[below.x(-amax), below.y(0)],
      ...centers.map((c, i) => [below.x(c), below.y(each[i] / most)]), [below.x(amax), below.y(0)]],
      { stroke: colors[3], fill: colors[3], "fill-opacity": 0.35, "stroke-width": 1.5 }));
    const bits = Math.log2(data.sizes[state.size]), bound = data.bounds[state.size];
    const best = distortion(data.presets[state.size][rules.length - 1]);
    const decibels = r => (10 * Math.log10(r)).toFixed(2) + " dB";
    for (const [i, button] of [...buttons.children].entries())
      if (i < rules.length) {
        button.setAttribute("aria-pressed", i === state.rule);
        button.style.fontWeight = i === state.rule ? 600 : 400;
        button.style.borderColor = i === state.rule ? "currentColor" : "";
      }
    read.replaceChildren(`${state.levels.length} levels in ${bits} bits: mean squared error `,
      el("strong", {}, number(sum) + " σ²"), ", SQNR ", el("strong", {}, decibels(1 / sum)),
      `. That is ${decibels(sum / best)} from the best levels, and ${decibels(sum / bound)} `
      + `(${(Math.log2(sum / bound) / 2).toFixed(2)} bits a value) from the bound for normal values.`);
  };
  const start = rule => {
    state.rule = rule;
    state.levels = [...data.presets[state.size][rule]];
    build();
    update();
  };
  const buttons = el("div", { class: "qfig-controls", role: "group", "aria-label": "Rules for the levels",
    style: "gap: .4rem .5rem; font-size: .85rem" },
    ...rules.map((rule, i) => {
      const button = el("button", { type: "button" }, rule);
      button.addEventListener("click", () => start(i));
      return button;
    }));
  const lloyd = el("button", { type: "button" }, "a step of Lloyd's algorithm");
  lloyd.addEventListener("click", () => {
    const sums = state.levels.map(() => 0), mass = state.levels.map(() => 0);
    centers.forEach((c, i) => {
      const j = nearest(state.levels, c);
      sums[j] += c * data.counts[i];
      mass[j] += data.counts[i];
    });
    state.levels = state.levels.map((v, j) => mass[j] ? sums[j] / mass[j] : v);
    state.rule = -1;
    update();
  });
  buttons.append(lloyd);
  root.append(el("div", { class: "qfig-controls" },
    choice("Levels", data.sizes.map(String), state.size, i => { state.size = i; start(Math.max(state.rule, 0)); })),
    buttons, svg, read, below.svg,
    el("p", { class: "qfig-read" }, "Above: the levels (lines with a dot) and the borders between their cells "
      + "(short lines). Below: where the squared error comes from."));
  start(0);
});
