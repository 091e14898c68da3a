// The graph. Up to a size all of it stands in the page; of a larger one what is in view, and from afar its outlines.

const GRAPH = DATA.graph;
const [NODE_WIDTH, NODE_HEIGHT] = [GRAPH.nodeWidth, GRAPH.nodeHeight];
/** A graph of so many nodes is drawn whole. */
const DRAWN_WHOLE = 1500;
const [LEAST_ZOOM, MOST_ZOOM] = [0.02, 3];
/** From so far away no label can be read. */
const READABLE = 0.15;

/** Ways to colour the graph: what an operator is, and the classes of that with their labels. */
const COLOURINGS = colourings();

function colourings() {
  const has = (key) => OPERATORS.some((one) => one[key] !== undefined);
  const found = { backend: { label: "backend", of: byBackend, legend: backendLegend() } };
  const bands = [["e0", "40 dB and more"], ["e1", "30 to 40 dB"], ["e2", "20 to 30 dB"], ["e3", "10 to 20 dB"], ["e4", "below 10 dB"], ["float", "not compared"]];
  if (has("isolated")) found.isolated = { label: "isolated error", of: (one) => byNoise(one.isolated?.sqnr), legend: bands };
  if (has("accumulated")) found.accumulated = { label: "accumulated error", of: (one) => byNoise(one.accumulated?.sqnr), legend: bands };
  if (has("noise")) {
    const most = Math.max(...OPERATORS.map((one) => toNumber(one.noise)).filter(Number.isFinite), 0);
    const shares = [["e0", "up to 1% of the largest"], ["e1", "to 10%"], ["e2", "to 30%"], ["e3", "to 60%"], ["e4", "more"], ["float", "not known"]];
    found.noise = { label: "noise in the outputs", of: (one) => byShare(one.noise, most), legend: shares };
  }
  if (has("lowered")) found.lowered = loweredColouring();
  return found;
}

function byBackend(one) {
  return one.quantizer === undefined ? "float" : `b${DATA.quantizers.indexOf(one.quantizer) % 6}`;
}

function backendLegend() {
  return [...DATA.quantizers.map((name, index) => [`b${index % 6}`, name]), ["float", "float"], ["port", "input or output"]];
}

function byNoise(sqnr) {
  const value = toNumber(sqnr);
  if (Number.isNaN(value)) return "float";
  return `e${[40, 30, 20, 10].filter((end) => value < end).length}`;
}

function byShare(cost, most) {
  const value = toNumber(cost);
  if (Number.isNaN(value)) return "float";
  return `e${[0.01, 0.1, 0.3, 0.6].filter((share) => value > share * most).length}`;
}

function loweredColouring() {
  const codes = [...new Set(OPERATORS.map((one) => one.lowered?.[0]).filter(Boolean))].sort();
  return {
    label: "lowering status",
    of: (one) => (one.lowered === undefined ? "float" : `b${codes.indexOf(one.lowered[0]) % 6}`),
    legend: codes.map((code, index) => [`b${index % 6}`, code]),
  };
}

class GraphView {
  constructor() {
    this.holder = document.getElementById("drawing");
    this.strip = document.getElementById("strip");
    this.colouring = COLOURINGS.isolated ? "isolated" : "backend";
    this.elements = new Map();
    this.chosen = null;
    this.current = 0;
    this.isWhole = GRAPH.nodes.length <= DRAWN_WHOLE;
    this.byHeight = GRAPH.nodes.map((_, index) => index).sort((a, b) => GRAPH.nodes[a].y - GRAPH.nodes[b].y);
    this.neighbours = this.findNeighbours();
    this.svg = drawn("svg", { viewBox: `0 0 ${GRAPH.width} ${GRAPH.height}`, role: "presentation" });
    this.wires = drawn("g");
    this.marked = drawn("g");
    this.outlines = drawn("g");
    this.nodes = drawn("g");
    this.svg.append(this.wires, this.marked, this.outlines, this.nodes);
    this.holder.append(this.svg);
    this.holder.dataset.nodes = String(GRAPH.nodes.length);
    this.buildControls();
    this.listen();
    this.setZoom(this.firstZoom());
    this.holder.scrollLeft = (GRAPH.nodes[this.byHeight[0]]?.x ?? 0) * this.zoom - this.holder.clientWidth / 2;
    this.draw();
    this.drawStrip();
    this.drawLegend();
  }

  findNeighbours() {
    const found = GRAPH.nodes.map(() => ({ reads: [], users: [] }));
    for (const [a, b] of [...GRAPH.routes, ...GRAPH.far]) { found[a].users.push(b); found[b].reads.push(a); }
    return found;
  }

  firstZoom() {
    const fit = this.holder.clientWidth / GRAPH.width;
    return Math.min(1, Math.max(fit, 0.72));
  }

  buildControls() {
    const button = (text, label, act) => element("button", { type: "button", "aria-label": label, title: label, onclick: act }, text);
    const select = element("select", { id: "colouring", onchange: (event) => this.recolour(event.target.value) },
      ...Object.entries(COLOURINGS).map(([key, { label }]) => element("option", { value: key, selected: key === this.colouring }, label)));
    const search = element("input", { type: "search", id: "find-node", placeholder: "operator or module", autocomplete: "off",
      onkeydown: (event) => { if (event.key === "Enter") this.find(event.target.value); } });
    document.getElementById("graph-controls").append(
      element("label", {}, "Coloured by", select),
      element("label", {}, "Find (Enter: next)", search),
      button("+", "Zoom in", () => this.zoomBy(1.3)),
      button("−", "Zoom out", () => this.zoomBy(1 / 1.3)),
      button("Fit", "Show all of the graph", () => this.fit()),
      button("1:1", "Show nodes in their size", () => this.zoomTo(1)),
      button("Worst", "Go to the operator with the largest error", () => this.goToWorst()),
    );
    const worst = [...document.querySelectorAll("#graph-controls button")].at(-1);
    worst.hidden = this.colouring === "backend";
  }

  goToWorst() {
    const key = ["accumulated", "noise"].includes(this.colouring) ? this.colouring : "isolated";
    const value = key === "noise" ? (one) => -toNumber(one.noise) : (one) => toNumber(one[key]?.sqnr);
    let worst = null;
    OPERATORS.forEach((one, index) => {
      if (!Number.isNaN(value(one)) && (worst === null || value(one) < value(OPERATORS[worst]))) worst = index;
    });
    if (worst !== null) choose(worst, true);
  }

  listen() {
    this.holder.addEventListener("scroll", () => this.drawSoon(), { passive: true });
    new ResizeObserver(() => { this.drawSoon(); this.drawStrip(); }).observe(this.holder);
    this.holder.addEventListener("wheel", (event) => {
      if (!event.ctrlKey && !event.metaKey) return;
      event.preventDefault();
      this.zoomBy(Math.exp(-event.deltaY * 0.003), event);
    }, { passive: false });
    this.holder.addEventListener("keydown", (event) => this.onKey(event));
    this.nodes.addEventListener("click", (event) => {
      const node = event.target.closest("[data-node]");
      if (node) this.onNode(Number(node.dataset.node));
    });
    this.listenToDrags();
    const toStrip = (event) => {
      const share = (event.clientY - this.strip.getBoundingClientRect().top) / this.strip.clientHeight;
      this.holder.scrollTop = share * this.holder.scrollHeight - this.holder.clientHeight / 2;
    };
    this.strip.addEventListener("pointerdown", (event) => { this.strip.setPointerCapture(event.pointerId); toStrip(event); });
    this.strip.addEventListener("pointermove", (event) => { if (event.buttons) toStrip(event); });
  }

  listenToDrags() {
    let from = null;
    this.holder.addEventListener("pointerdown", (event) => {
      if (event.pointerType !== "mouse" || event.button !== 0 || event.target.closest("[data-node]")) return;
      from = { x: event.clientX + this.holder.scrollLeft, y: event.clientY + this.holder.scrollTop };
      this.holder.classList.add("dragging");
      this.holder.setPointerCapture(event.pointerId);
    });
    this.holder.addEventListener("pointermove", (event) => {
      if (from) this.holder.scrollTo(from.x - event.clientX, from.y - event.clientY);
    });
    const end = () => { from = null; this.holder.classList.remove("dragging"); };
    this.holder.addEventListener("pointerup", end);
    this.holder.addEventListener("pointercancel", end);
  }

  onKey(event) {
    const acts = { "+": () => this.zoomBy(1.3), "=": () => this.zoomBy(1.3), "-": () => this.zoomBy(1 / 1.3), 0: () => this.fit() };
    const steps = {
      ArrowDown: () => this.neighbours[this.current].users[0] ?? this.beside(1),
      ArrowUp: () => this.neighbours[this.current].reads[0] ?? this.beside(-1),
      ArrowRight: () => this.beside(1), ArrowLeft: () => this.beside(-1),
      Home: () => this.byHeight[0], End: () => this.byHeight.at(-1),
    };
    if (event.ctrlKey || event.metaKey || event.altKey) return;
    if (acts[event.key]) acts[event.key]();
    else if (steps[event.key]) this.focus(steps[event.key]());
    else if (event.key === "Enter" || event.key === " ") this.onNode(this.current);
    else return;
    event.preventDefault();
  }

  beside(step) {
    const order = this.byHeight;
    const at = order.indexOf(this.current) + step;
    return order[Math.min(Math.max(at, 0), order.length - 1)];
  }

  focus(index) {
    this.current = index;
    this.show(index);
    for (const [other, made] of this.elements) made.setAttribute("tabindex", other === index ? "0" : "-1");
    this.elements.get(index)?.focus({ preventScroll: true });
  }

  onNode(index) {
    this.current = index;
    const node = GRAPH.nodes[index];
    if (node.operator !== undefined) choose(node.operator, false);
  }

  find(text) {
    const words = text.toLowerCase().split(/\s+/).filter(Boolean);
    if (!words.length) return;
    const count = OPERATORS.length;
    const first = CHOSEN === null ? 0 : CHOSEN + 1;
    for (let step = 0; step < count; step += 1) {
      const one = OPERATORS[(first + step) % count];
      const all = `${one.name} ${one.op} ${one.module ?? ""}`.toLowerCase();
      if (words.every((word) => all.includes(word))) { choose((first + step) % count, true, false); return; }
    }
  }

  /** Mark the node of an operator, and bring it into view where that is asked for. */
  mark(operator, isShown) {
    const index = GRAPH.nodes.findIndex((node) => node.operator === operator);
    this.elements.get(this.chosen)?.classList.remove("chosen");
    this.chosen = index < 0 ? null : index;
    if (index >= 0) {
      this.current = index;
      if (isShown) this.show(index);
      this.draw();
      this.elements.get(index)?.classList.add("chosen");
    }
    this.drawMarkedWires();
    this.drawStrip();
  }

  show(index) {
    if (this.zoom < 0.5) this.setZoom(0.8);
    const { x, y } = GRAPH.nodes[index];
    const [left, top] = [x * this.zoom + this.offset() - this.holder.clientWidth / 2, y * this.zoom - this.holder.clientHeight / 2];
    this.holder.scrollTo(left, top);
    this.draw();
  }

  offset() {
    return Math.max(0, (this.holder.clientWidth - GRAPH.width * this.zoom) / 2);
  }

  zoomTo(zoom) { this.zoomBy(zoom / this.zoom); }

  fit() {
    this.zoomTo(Math.min(this.holder.clientWidth / GRAPH.width, this.holder.clientHeight / GRAPH.height, 1));
  }

  zoomBy(factor, event = null) {
    const box = this.holder.getBoundingClientRect();
    const at = event ? { x: event.clientX - box.left, y: event.clientY - box.top } : { x: box.width / 2, y: box.height / 2 };
    const before = this.offset();
    const point = { x: (this.holder.scrollLeft + at.x - before) / this.zoom, y: (this.holder.scrollTop + at.y) / this.zoom };
    this.setZoom(Math.min(Math.max(this.zoom * factor, LEAST_ZOOM), MOST_ZOOM));
    this.holder.scrollTo(point.x * this.zoom + this.offset() - at.x, point.y * this.zoom - at.y);
    this.draw();
  }

  setZoom(zoom) {
    this.zoom = zoom;
    this.svg.setAttribute("width", GRAPH.width * zoom);
    this.svg.setAttribute("height", GRAPH.height * zoom);
  }

  recolour(key) {
    this.colouring = key;
    for (const made of this.elements.values()) made.remove();
    this.elements.clear();
    this.draw();
    this.drawStrip();
    this.drawLegend();
    [...document.querySelectorAll("#graph-controls button")].at(-1).hidden = !["isolated", "accumulated", "noise"].includes(key);
  }

  kindOf(index) {
    const node = GRAPH.nodes[index];
    return node.operator === undefined ? "port" : COLOURINGS[this.colouring].of(OPERATORS[node.operator]);
  }

  drawSoon() {
    if (this.waits) return;
    this.waits = true;
    requestAnimationFrame(() => { this.waits = false; this.draw(); });
  }

  /** The nodes that lie between two heights, in that order. */
  between(top, bottom) {
    let [first, last] = [0, this.byHeight.length];
    while (first < last) {
      const middle = (first + last) >> 1;
      if (GRAPH.nodes[this.byHeight[middle]].y < top) first = middle + 1; else last = middle;
    }
    const found = [];
    for (let at = first; at < this.byHeight.length && GRAPH.nodes[this.byHeight[at]].y <= bottom; at += 1) found.push(this.byHeight[at]);
    return found;
  }

  draw() {
    const margin = this.isWhole ? Infinity : this.holder.clientHeight / this.zoom;
    const top = this.holder.scrollTop / this.zoom - margin;
    const bottom = (this.holder.scrollTop + this.holder.clientHeight) / this.zoom + margin;
    const visible = this.isWhole ? this.byHeight : this.between(top, bottom);
    const isFar = visible.length > DRAWN_WHOLE || (!this.isWhole && this.zoom < READABLE);
    this.drawOutlines(isFar ? visible : []);
    const wanted = new Set(isFar ? [] : visible);
    if (this.chosen !== null) wanted.add(this.chosen);
    for (const [index, made] of this.elements) if (!wanted.has(index)) { made.remove(); this.elements.delete(index); }
    for (const index of wanted) if (!this.elements.has(index)) this.add(index);
    if (!this.isWhole || !this.wires.childNodes.length) this.drawWires(top, bottom);
  }

  add(index) {
    const node = GRAPH.nodes[index];
    const one = node.operator === undefined ? null : OPERATORS[node.operator];
    const label = one === null ? node.name : shortOperator(one.op);
    const below = one === null ? node.kind : one.module || one.name;
    const made = drawn("g", {
      class: index === this.chosen ? "op chosen" : "op", "data-node": index, role: "button",
      tabindex: index === this.current ? "0" : "-1", transform: `translate(${node.x - NODE_WIDTH / 2},${node.y - NODE_HEIGHT / 2})`,
      "aria-label": one === null ? `${node.kind} ${node.name}` : `${one.name}, ${label}, ${one.quantizer ?? "float"}`,
    });
    const rectangle = drawn("rect", { width: NODE_WIDTH, height: NODE_HEIGHT, rx: 7, class: `c-${this.kindOf(index)}` });
    made.append(rectangle, drawn("text", { x: 10, y: 16 }, shortened(label, 23)), drawn("text", { x: 10, y: 30, class: "sub" }, shortened(below, 29)));
    made.append(drawn("title", {}, one === null ? node.name : `${one.name}\n${one.op}\n${one.module ?? ""}`));
    this.nodes.append(made);
    this.elements.set(index, made);
  }

  /** All nodes of one colour as one outline. */
  drawOutlines(indices) {
    const paths = new Map();
    for (const index of indices) {
      const { x, y } = GRAPH.nodes[index];
      const kind = this.kindOf(index);
      if (!paths.has(kind)) paths.set(kind, []);
      paths.get(kind).push(`M${x - NODE_WIDTH / 2} ${y - NODE_HEIGHT / 2}h${NODE_WIDTH}v${NODE_HEIGHT}h${-NODE_WIDTH}z`);
    }
    this.outlines.replaceChildren(...[...paths].map(([kind, parts]) => drawn("path", { d: parts.join(""), class: `c-${kind}` })));
  }

  drawWires(top, bottom) {
    const parts = [];
    for (const [, , points] of GRAPH.routes) {
      if (points.at(-1) >= top && points[1] <= bottom) parts.push(wire(points));
    }
    this.wires.replaceChildren(drawn("path", { d: parts.join(""), class: "wire" }));
  }

  drawMarkedWires() {
    const paths = [];
    if (this.chosen !== null) {
      for (const [a, b, points] of GRAPH.routes) {
        if (a === this.chosen || b === this.chosen) paths.push(drawn("path", { d: wire(points), class: "wire chosen" }));
      }
      for (const [a, b] of GRAPH.far) {
        if (a !== this.chosen && b !== this.chosen) continue;
        const [from, to] = [GRAPH.nodes[a], GRAPH.nodes[b]];
        paths.push(drawn("path", { d: wire([from.x, from.y, to.x, to.y]), class: "wire chosen far" }));
      }
    }
    this.marked.replaceChildren(...paths);
  }

  drawStrip() {
    const [width, height] = [this.strip.clientWidth, this.strip.clientHeight];
    if (!height) return;
    const scale = window.devicePixelRatio || 1;
    this.strip.width = width * scale;
    this.strip.height = height * scale;
    const context = this.strip.getContext("2d");
    context.scale(scale, scale);
    const edges = new Map();
    const rank = (kind) => (kind.startsWith("e") ? Number(kind[1]) + 1 : 0);
    // The worst is drawn last, so that it shows where many share a line.
    const order = this.byHeight.map((index) => [index, this.kindOf(index)]).sort((a, b) => rank(a[1]) - rank(b[1]));
    const thick = Math.max(1, (NODE_HEIGHT / GRAPH.height) * height);
    for (const [index, kind] of order) {
      if (!edges.has(kind)) edges.set(kind, colour(`${kind}-edge`));
      const { x, y } = GRAPH.nodes[index];
      context.fillStyle = edges.get(kind);
      const part = Math.max(3, (NODE_WIDTH / GRAPH.width) * (width - 4));
      context.fillRect(2 + ((x - NODE_WIDTH / 2) / GRAPH.width) * (width - 4), (y / GRAPH.height) * height - thick / 2, part, thick);
    }
    if (this.chosen !== null) {
      context.fillStyle = colour("focus");
      context.fillRect(0, (GRAPH.nodes[this.chosen].y / GRAPH.height) * height - 1.5, width, 3);
    }
  }

  drawLegend() {
    const used = new Set(GRAPH.nodes.map((_, index) => this.kindOf(index)));
    const entries = COLOURINGS[this.colouring].legend.filter(([kind]) => used.has(kind));
    document.getElementById("legend").replaceChildren(...entries.map(([kind, label]) =>
      element("span", {}, element("i", { class: `c-${kind}` }), label)));
  }
}

function shortened(text, length) {
  return text.length <= length ? text : `…${text.slice(text.length - length + 1)}`;
}

/** A curve through the points of an edge, from below its first node to above its last. */
function wire(points) {
  let [x, y] = [points[0], points[1] + NODE_HEIGHT / 2];
  let path = `M${x} ${y}`;
  for (let at = 2; at < points.length; at += 2) {
    const isLast = at === points.length - 2;
    const [toX, toY] = [points[at], points[at + 1] - (isLast ? NODE_HEIGHT / 2 : 0)];
    const middle = (y + toY) / 2;
    path += x === toX ? `V${toY}` : `C${x} ${middle} ${toX} ${middle} ${toX} ${toY}`;
    [x, y] = [toX, toY];
  }
  return path;
}
