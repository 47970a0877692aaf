// A token's way: stages with their share of time, bytes or operations; one chosen at a time.
qlab.define("tokenway", (root, data) => {
  const { el, choice, number, colors } = qlab;
  const measures = [["time", "seconds", colors[1]], ["bytes read", "bytes", colors[0]], ["operations", "operations", colors[2]]];
  const state = { way: 0, measure: 0, stage: 2 };
  const style = el("style", {}, `
.qway { display: flex; flex-direction: column; gap: 2px; }
.qfig .qway button { display: grid; grid-template-columns: minmax(7.5rem, 11rem) 1fr 3.2rem; gap: .5rem; align-items: center;
  text-align: left; width: 100%; border: 1px solid transparent; padding: .2rem .4rem; cursor: pointer; font-size: .85rem; }
.qfig .qway button[aria-pressed=true] { border-color: currentColor; font-weight: 700; }
.qway i { display: block; height: .85rem; border-radius: 2px; min-width: 1px; }
.qway b { text-align: right; font-weight: inherit; font-variant-numeric: tabular-nums; }`);
  const list = el("div", { class: "qway", role: "toolbar", "aria-label": "Stages, in order; arrow keys move" });
  const read = qlab.readout();
  const stages = () => data.ways[state.way].stages;
  const total = key => stages().reduce((sum, s) => sum + s[key], 0);
  const share = (s, key) => total(key) ? s[key] / total(key) : 0;
  root.qlabRun = (way, measure) => data.ways[way].stages.map(s => { // for tests
    const key = measures[measure][1], all = data.ways[way].stages.reduce((a, b) => a + b[key], 0);
    return s[key] / all;
  });
  const size = v => v >= 1e6 ? number(v / 1e6) + " MB" : v >= 1e3 ? number(v / 1e3) + " kB" : v + " bytes";
  let buttons = [];
  const build = () => {
    buttons = stages().map((s, i) => {
      const button = el("button", { type: "button" }, el("span", {}, s.name), el("i"), el("b"));
      button.addEventListener("click", () => { state.stage = i; update(); });
      return button;
    });
    list.replaceChildren(...buttons);
    update();
  };
  const update = () => {
    const [, key, fill] = measures[state.measure];
    const top = Math.max(...stages().map(s => share(s, key)));
    stages().forEach((s, i) => {
      const part = share(s, key), [, bar, text] = buttons[i].children;
      bar.style.width = `${top ? 100 * part / top : 0}%`;
      bar.style.background = fill;
      text.textContent = `${(100 * part).toFixed(part < 0.0995 ? 1 : 0)}%`;
      buttons[i].setAttribute("aria-pressed", i === state.stage);
      buttons[i].setAttribute("tabindex", i === state.stage ? 0 : -1);
    });
    const s = stages()[state.stage];
    read.replaceChildren(el("strong", {}, s.name), `: ${s.formula}. ${s.shapes}`,
      s.times > 1 ? `, ${s.times} times` : "", ". It reads ", el("strong", {}, size(s.bytes)), " for ",
      el("strong", {}, s.operations.toLocaleString("en") + " operations"),
      s.bytes ? `, ${number(s.operations / s.bytes)} a byte` : "", ", and took ",
      el("strong", {}, number(1e6 * s.seconds) + " microseconds"), ` (${(100 * share(s, "seconds")).toFixed(1)}% of the token's ${number(1e6 * total("seconds"))}).`);
  };
  list.addEventListener("keydown", event => {
    const step = { ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1 }[event.key];
    if (!step) return;
    event.preventDefault();
    state.stage = (state.stage + step + buttons.length) % buttons.length;
    update();
    buttons[state.stage].focus();
  });
  const controls = el("div", { class: "qfig-controls" });
  if (data.ways.length > 1)
    controls.append(choice("Model", data.ways.map(w => w.title), 0, v => { state.way = v; build(); }));
  controls.append(choice("Bars show the share of", measures.map(m => m[0]), 0, v => { state.measure = v; update(); }));
  root.append(style, controls, list, read);
  build();
});
