// Elements are made of texts, never of HTML: names come from models.

/** The data of the page. */
const DATA = JSON.parse(document.getElementById("data").textContent);
const OPERATORS = DATA.operators;
const OPERATOR_BY_NAME = new Map(OPERATORS.map((operator, index) => [operator.name, index]));

/** An element with attributes and children; a child that is a text becomes a text. */
function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) made.addEventListener(name.slice(2), value);
    else if (value !== null && value !== undefined && value !== false) made.setAttribute(name, value === true ? "" : value);
  }
  made.append(...children.filter((child) => child !== null && child !== undefined));
  return made;
}

/** An element of SVG with attributes and a text. */
function drawn(tag, attributes = {}, text = null) {
  const made = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  if (text !== null) made.textContent = text;
  return made;
}

/** A number of the data, in which infinite ones are texts; NaN for what is none. */
function toNumber(value) {
  if (value === "inf") return Infinity;
  if (value === "-inf") return -Infinity;
  return typeof value === "number" ? value : NaN;
}

/** A number for people. */
function toText(value, unit = "") {
  const number = toNumber(value);
  if (Number.isNaN(number)) return value === null || value === undefined ? "" : String(value);
  if (!Number.isFinite(number)) return number > 0 ? "∞" : "−∞";
  const size = Math.abs(number);
  let text;
  if (Number.isInteger(number) && size < 1e15) text = number.toLocaleString("en-US");
  else if (size >= 1e5 || size < 1e-3) text = number.toExponential(2);
  else if (unit === "dB") text = number.toFixed(1);
  else text = String(Number(number.toPrecision(4)));
  text = text.replace("-", "−");
  return unit ? `${text} ${unit}` : text;
}

/** A share for people. */
function toPercent(share) {
  const value = toNumber(share);
  if (Number.isNaN(value)) return "";
  if (value > 0 && value < 0.0001) return "< 0.01%";
  return `${Number((value * 100).toPrecision(value < 0.1 ? 2 : 3))}%`;
}

/** The overload of an operator without what is the same for most. */
function shortOperator(op) {
  return op.replace(/^aten\./, "").replace(/\.default$/, "");
}

/** A button that leads to an operator. */
function operatorLink(name, text = name) {
  if (!OPERATOR_BY_NAME.has(name)) return document.createTextNode(text);
  return element("button", { class: "link", type: "button", onclick: () => choose(OPERATOR_BY_NAME.get(name), true) }, text);
}
