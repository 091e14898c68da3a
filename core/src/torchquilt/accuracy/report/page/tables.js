// Tables that sort by a click on a heading and show the rows in which all words of a text stand.

/** So many rows are drawn before they are asked for. */
const ROWS_AT_ONCE = 1000;
/** A table of so few rows needs no filter. */
const FEW_ROWS = 8;
/** A text of so many characters is folded. */
const LONG_TEXT = 48;

/** The rows of the ledger as a table, with what was measured of them. */
function operatorTable() {
  const has = (key) => OPERATORS.some((one) => one[key] !== undefined);
  const columns = [
    { label: "node", kind: "node", value: (one) => one.name },
    { label: "operator", has_choices: true, value: (one) => shortOperator(one.op) },
    { label: "module", value: (one) => one.module ?? "" },
    { label: "quantizer", has_choices: true, value: (one) => one.quantizer ?? "float" },
    { label: "multiply-adds", kind: "number", value: (one) => one.macs },
  ];
  if (has("isolated")) columns.push(
    { label: "isolated SQNR", kind: "number", unit: "dB", value: (one) => one.isolated?.sqnr ?? null },
    { label: "accumulated SQNR", kind: "number", unit: "dB", value: (one) => one.accumulated?.sqnr ?? null },
    { label: "saturated", kind: "percent", value: (one) => one.uses?.output?.saturated ?? null },
    { label: "reason of the error", value: (one) => one.why ?? "" },
  );
  if (has("noise")) columns.push({ label: "noise in the outputs", kind: "number", value: (one) => one.noise ?? null });
  if (has("lowered")) columns.push({ label: "lowered", has_choices: true, value: (one) => one.lowered?.[0] ?? "" });
  columns.push(
    { label: "pattern", value: (one) => one.pattern ?? "" },
    { label: "rule", value: (one) => one.rule ?? (one.reasons ?? []).filter((r) => r[3]).map((r) => `${r[3]}: ${r[4]}`).join("\n") },
    { label: "specs, or why not", value: whatHolds },
  );
  return { columns, rows: OPERATORS.map((one) => columns.map((column) => column.value(one))) };
}

function whatHolds(one) {
  const specs = (one.tensors ?? []).map(([place, spec]) => `${place}: ${spec}`);
  const reasons = (one.reasons ?? []).map(([, code, text]) => `${code}: ${text}`);
  return [...specs, ...reasons].join("\n");
}

class SortedTable {
  constructor(holder, table, caption) {
    this.columns = table.columns;
    this.all = table.rows.map((cells, index) => ({ cells, index, text: cells.join("\n").toLowerCase() }));
    this.shown = this.all;
    this.sorted = null;
    this.choices = new Map();
    this.words = [];
    this.limit = ROWS_AT_ONCE;
    this.caption = caption;
    this.build(holder);
    this.draw();
  }

  build(holder) {
    this.count = element("span", { class: "count", role: "status" });
    const search = element("input", {
      type: "search", placeholder: "words in any column", autocomplete: "off",
      oninput: (event) => { this.words = event.target.value.toLowerCase().split(/\s+/).filter(Boolean); this.refilter(); },
    });
    const controls = element("div", { class: "controls" }, element("label", {}, "Filter", search));
    this.columns.forEach((column, index) => { if (column.has_choices) controls.append(this.choice(column, index)); });
    controls.append(this.count);
    const unfold = (event) => {
      if (event.target.closest("button")) return;
      event.target.closest("tr").classList.toggle("unfolded");
    };
    this.body = element("tbody", { onclick: unfold, onkeydown: (event) => { if (event.key === "Enter") unfold(event); } });
    const head = element("tr", {}, ...this.columns.map((column, index) => this.heading(column, index)));
    const table = element("table", { class: "sortable" }, element("caption", { hidden: true }, this.caption), element("thead", {}, head), this.body);
    this.more = element("button", { class: "more", type: "button", hidden: true, onclick: () => { this.limit = Infinity; this.draw(); } });
    const scroll = element("div", { class: "scroll tall", tabindex: "0", role: "region", "aria-label": this.caption }, table);
    controls.hidden = this.all.length <= FEW_ROWS;
    holder.append(element("h3", {}, this.caption), controls, scroll, this.more);
  }

  choice(column, index) {
    const values = [...new Set(this.all.map((row) => row.cells[index]))].sort();
    const select = element("select", { onchange: (event) => { this.choices.set(index, event.target.value); this.refilter(); } },
      element("option", { value: "*" }, "all"), ...values.map((value) => element("option", { value: `=${value}` }, value || "–")));
    return element("label", {}, column.label, select);
  }

  heading(column, index) {
    const arrow = element("span", { class: "arrow", "aria-hidden": "true" });
    const button = element("button", { type: "button", onclick: () => this.sort(index) }, column.label, arrow);
    return element("th", { scope: "col", class: isNumeric(column) ? "number" : "text" }, button);
  }

  sort(index) {
    const again = this.sorted?.index === index;
    this.sorted = again && this.sorted.down ? null : { index, down: again };
    this.body.parentElement.querySelectorAll("thead th").forEach((heading, at) => {
      const isIt = this.sorted?.index === at;
      if (isIt) heading.setAttribute("aria-sort", this.sorted.down ? "descending" : "ascending");
      else heading.removeAttribute("aria-sort");
      heading.querySelector(".arrow").textContent = isIt ? (this.sorted.down ? "↓" : "↑") : "";
    });
    this.draw();
  }

  refilter() {
    const choices = [...this.choices].filter(([, value]) => value !== "*");
    this.shown = this.all.filter((row) => this.words.every((word) => row.text.includes(word))
      && choices.every(([index, value]) => `=${row.cells[index]}` === value));
    this.limit = ROWS_AT_ONCE;
    this.draw();
  }

  ordered() {
    if (this.sorted === null) return this.shown;
    const { index, down } = this.sorted;
    const column = this.columns[index];
    const sign = down ? -1 : 1;
    const key = isNumeric(column) ? (row) => toNumber(row.cells[index]) : (row) => String(row.cells[index] ?? "");
    const keyed = this.shown.map((row) => ({ row, key: key(row) }));
    const collator = new Intl.Collator("en", { numeric: true });
    keyed.sort((a, b) => {
      if (!isNumeric(column)) return sign * collator.compare(a.key, b.key) || a.row.index - b.row.index;
      // What has no value comes last, in either order.
      const none = Number.isNaN(a.key) - Number.isNaN(b.key);
      if (none || Number.isNaN(a.key)) return none || a.row.index - b.row.index;
      return a.key === b.key ? a.row.index - b.row.index : sign * (a.key < b.key ? -1 : 1);
    });
    return keyed.map(({ row }) => row);
  }

  draw() {
    const rows = this.ordered();
    const drawnRows = rows.slice(0, this.limit);
    this.body.replaceChildren(...drawnRows.map((row) => this.row(row)));
    this.count.textContent = `${rows.length.toLocaleString("en-US")} of ${this.all.length.toLocaleString("en-US")}`;
    this.more.hidden = drawnRows.length === rows.length;
    markRow();
    this.more.textContent = `Show all ${rows.length.toLocaleString("en-US")}`;
  }

  row(row) {
    const cells = this.columns.map((column, index) => this.cell(column, row.cells[index], index));
    const found = element("tr", { "data-row": String(row.index) }, ...cells);
    // What has a link can be focused anyhow.
    if (!found.querySelector("button") && found.querySelector(".clamp")) found.tabIndex = 0;
    return found;
  }

  cell(column, value, index) {
    const tag = index === 0 ? "th" : "td";
    const scope = index === 0 ? "row" : null;
    if (column.kind === "node") return element(tag, { scope, class: "text" }, operatorLink(value));
    if (column.kind === "percent") return element(tag, { scope, class: "number" }, toPercent(value));
    if (column.kind === "number") return element(tag, { scope, class: "number" }, toText(value, column.unit));
    const text = String(value ?? "");
    return element(tag, { scope, class: text.length > 40 ? "text long" : "text" }, folded(text));
  }
}

/** A long text as its first lines; the rest of them shows when its row is unfolded. */
function folded(text) {
  return text.length < LONG_TEXT ? text : element("div", { class: "clamp" }, text);
}

function isNumeric(column) {
  return column.kind === "number" || column.kind === "percent";
}

/** Build the tables that are not there yet, from top to bottom; at most one where that is asked for. */
function buildTables(most = Infinity) {
  const waiting = [...document.querySelectorAll("[data-table]:not([data-built])")];
  for (const holder of waiting.slice(0, most)) {
    const name = holder.dataset.table;
    const table = name === "operators" ? operatorTable() : DATA.tables[name];
    if (table) new SortedTable(holder, table, holder.dataset.caption);
    holder.dataset.built = "yes";
  }
  return waiting.length > most;
}
