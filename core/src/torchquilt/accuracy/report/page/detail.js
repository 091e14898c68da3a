// What is known of the operator that is chosen.

let CHOSEN = null;
let VIEW = null;

/** The operators whose tensors are in each group. */
const MEMBERS = new Map();
OPERATORS.forEach((one) => (one.tensors ?? []).forEach(([, , group]) => {
  if (!MEMBERS.has(group)) MEMBERS.set(group, new Set());
  MEMBERS.get(group).add(one.name);
}));

/** Choose an operator: mark it in the graph and in the table, and show what is known of it. */
function choose(index, isShown, isScrolled = isShown) {
  CHOSEN = index;
  VIEW.mark(index, isShown);
  markRow();
  const panel = document.getElementById("detail");
  forget(panel);
  panel.replaceChildren(...describe(OPERATORS[index]));
  panel.scrollTop = 0;
  drawDetailPlots(panel, OPERATORS[index]);
  const isNarrow = window.matchMedia("(max-width: 900px)").matches;
  if (isNarrow) panel.scrollIntoView({ block: "start" });
  else if (isScrolled) document.getElementById("graph").scrollIntoView({ block: "start" });
}

/** Mark the row of the operator that is chosen. */
function markRow() {
  for (const row of document.querySelectorAll("tr.chosen")) row.classList.remove("chosen");
  if (CHOSEN !== null) document.querySelector(`[data-table=operators] tr[data-row="${CHOSEN}"]`)?.classList.add("chosen");
}

function describeNothing() {
  document.getElementById("detail").replaceChildren(
    element("p", { class: "hint" }, "Choose an operator in the graph or in a table to see its specs, its group, its range and its errors."));
}

function describe(one) {
  const facts = [
    ["operator", one.op], ["module", one.module || "(the model itself)"], ["quantizer", one.quantizer ?? "none: it stays in float"],
    ["pattern", one.pattern], ["rule", one.rule], ["multiply-adds", one.macs ? toText(one.macs) : null],
    ["parameters", (one.parameters ?? []).map(([name, bytes]) => `${name} (${toText(bytes)} bytes)`).join(", ")],
    ["written as", (one.written ?? []).map(([name, op]) => `${name} (${op})`).join(", ")],
    ["lowered", one.lowered ? one.lowered.filter(Boolean).join(": ") : null], ["noise in the outputs", one.noise === undefined ? null : toText(one.noise)],
  ].filter(([, text]) => text);
  const list = element("dl", {}, ...facts.flatMap(([label, text]) => [element("dt", {}, label), element("dd", {}, text)]));
  return [element("h3", {}, one.name), list, ...reasons(one), ...errors(one), ...(one.tensors ?? []).length ? [element("h4", {}, "Quantized tensors")] : [],
    ...(one.tensors ?? []).map((tensor) => describeTensor(one, tensor)), ...neighbourLists(one)];
}

function reasons(one) {
  if (!one.reasons) return [];
  const items = one.reasons.map(([quantizer, code, text, rule, asked]) =>
    element("li", {}, `${quantizer ? `${quantizer}: ` : ""}${text} (${code})${rule ? `; asked by ${rule}: ${asked}` : ""}`));
  return [element("h4", {}, "Why it stays in float"), element("ul", {}, ...items)];
}

function errors(one) {
  if (!one.isolated && !one.accumulated) return [];
  const names = [["sqnr", "SQNR", "dB"], ["cosine", "cosine", ""], ["mean_error", "mean error", ""], ["max_error", "max error", ""]];
  const rows = names.filter(([key]) => one.isolated?.[key] !== undefined || one.accumulated?.[key] !== undefined).map(([key, label, unit]) =>
    element("tr", {}, element("th", { scope: "row" }, label), element("td", { class: "number" }, toText(one.isolated?.[key], unit)), element("td", { class: "number" }, toText(one.accumulated?.[key], unit))));
  const head = element("tr", {}, element("th"), element("th", { scope: "col", class: "number" }, "isolated"), element("th", { scope: "col", class: "number" }, "accumulated"));
  const scatter = one.samples ? [element("div", { class: "plot", "data-plot": "scatter", role: "img", "aria-label": `Quantized against float values of ${one.name}, ${one.samples.length} samples` })] : [];
  return [element("h4", {}, "Error"), element("table", {}, element("thead", {}, head), element("tbody", {}, ...rows)),
    ...(one.why ? [element("p", { class: "why" }, one.why)] : []), ...scatter];
}

function describeTensor(one, [place, spec, number]) {
  const group = DATA.groups[number] ?? {};
  const parts = [element("p", {}, element("strong", {}, place), `: ${spec}`)];
  if (group.text) parts.push(element("p", { class: "dim" }, group.text));
  if (group.low !== undefined && group.low !== null) parts.push(element("p", {}, `range ${toText(group.low)} to ${toText(group.high)}`));
  const others = [...(MEMBERS.get(number) ?? [])].filter((name) => name !== one.name);
  const shown = others.slice(0, 12).flatMap((name, index) => (index ? [", ", operatorLink(name)] : [operatorLink(name)]));
  const more = others.length > 12 ? ` and ${others.length - 12} more` : "";
  parts.push(element("p", { class: "dim" }, `group ${number}`, ...(others.length ? [", shared with ", ...shown, more] : [])));
  const use = describeUse(one.uses?.[place]);
  if (use) parts.push(element("p", {}, use));
  if (group.histogram) parts.push(...histogramParts(number, group));
  return element("div", { class: "tensor" }, ...parts);
}

/** The use that a tensor makes of its integers, as the comparison has it. */
function describeUse(use) {
  if (use === undefined) return "";
  const found = [];
  if (use.sqnr !== undefined) found.push(`SQNR of rounding it ${toText(use.sqnr, "dB")}`);
  for (const [key, label] of [["saturated", "saturated"], ["unused", "unused range"], ["to_zero", "become zero"]]) {
    if (toNumber(use[key]) > 0) found.push(`${label} ${toPercent(use[key])}`);
  }
  if (use.zeroed_channels) found.push(`channels that become zero ${toText(use.zeroed_channels)}`);
  return found.join("; ");
}

function histogramParts(number, group) {
  const { histogram } = group;
  const clipped = toNumber(histogram.clipped_below) + toNumber(histogram.clipped_above);
  const seen = `calibration saw ${toText(histogram.low)} to ${toText(histogram.high)}`;
  const told = group.low === undefined || group.low === null ? "" : clipped > 0
    ? `; the range clips ${toPercent(histogram.clipped_below)} below and ${toPercent(histogram.clipped_above)} above` : "; the range clips nothing";
  const beyond = toNumber(histogram.below) + toNumber(histogram.above) >= 1 ? `; ${toText(Math.round(toNumber(histogram.below) + toNumber(histogram.above)))} values lie outside of the plot` : "";
  const label = `Histogram of group ${number}: ${seen}${told}${beyond}`;
  return [element("p", { class: clipped > 0.0001 ? "clips" : "" }, seen + told + beyond),
    element("div", { class: "plot", "data-plot": "histogram", "data-group": String(number), role: "img", "aria-label": label })];
}

function neighbourLists(one) {
  const index = GRAPH.nodes.findIndex((node) => node.kind === "operator" && node.name === one.name);
  if (index < 0) return [];
  const { reads, users } = VIEW.neighbours[index];
  const list = (label, indices) => indices.length ? [element("p", { class: "near" }, `${label} `,
    ...indices.slice(0, 12).flatMap((at, number) => [number ? ", " : "", operatorLink(GRAPH.nodes[at].name)]), indices.length > 12 ? ` and ${indices.length - 12} more` : "")] : [];
  return [element("h4", {}, "Neighbours"), ...list("reads", reads), ...list("is read by", users)];
}

function drawDetailPlots(panel, one) {
  for (const holder of panel.querySelectorAll("[data-plot]")) {
    if (holder.dataset.plot === "scatter") plot(holder, () => scatterFigure(one.samples));
    else plot(holder, () => histogramFigure(DATA.groups[holder.dataset.group]));
  }
}
