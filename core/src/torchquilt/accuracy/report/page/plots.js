// Plots. plotly.js stands in the page compressed, and is unpacked when the first plot is drawn.

let plotlyIsLoaded = null;

/** Run the source of plotly.js, once. */
function loadPlotly() {
  plotlyIsLoaded ??= (async () => {
    const packed = atob(document.getElementById("plotly").textContent.trim());
    const bytes = Uint8Array.from(packed, (character) => character.charCodeAt(0));
    const stream = new Blob([bytes]).stream().pipeThrough(new DecompressionStream("gzip"));
    const script = document.createElement("script");
    script.textContent = await new Response(stream).text();
    document.head.append(script);
    script.remove();
  })();
  return plotlyIsLoaded;
}

function colour(name) {
  return getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
}

/** What is drawn where, so that it can be drawn again in other colours. */
const PLOTS = new Map();

/** Draw what a function makes of the colours of the page: {data, layout}. */
async function plot(holder, make) {
  PLOTS.set(holder, make);
  await loadPlotly();
  if (!holder.isConnected || PLOTS.get(holder) !== make) return;
  await window.Plotly.react(holder, ...figure(make()), { displayModeBar: false, responsive: true });
  holder.dataset.drawn = "yes";
}

function figure({ data, layout }) {
  const axis = { gridcolor: colour("line"), zerolinecolor: colour("line"), linecolor: colour("line"), automargin: true };
  return [data, {
    paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)", showlegend: false, bargap: 0,
    font: { family: "system-ui, sans-serif", size: 12, color: colour("text") },
    margin: { l: 46, r: 12, t: 10, b: 44 }, dragmode: false,
    ...layout,
    xaxis: { ...axis, ...layout.xaxis }, yaxis: { ...axis, ...layout.yaxis },
  }];
}

function forget(holder) {
  for (const known of [...PLOTS.keys()]) {
    if (holder.contains(known)) {
      if (known.dataset.drawn) window.Plotly.purge(known);
      PLOTS.delete(known);
    }
  }
}

function drawPlotsAgain() {
  for (const [holder, make] of PLOTS) plot(holder, make);
}

/** Counts of what calibration saw, with the range that was chosen. */
function histogramFigure(group) {
  const { start, end, counts } = group.histogram;
  const width = (end - start) / counts.length;
  const middles = counts.map((_, index) => start + (index + 0.5) * width);
  const hasRange = group.low !== undefined && group.low !== null;
  const isInside = (x) => !hasRange || (x + width / 2 > group.low && x - width / 2 < group.high);
  const lines = hasRange ? [group.low, group.high].map((x) => ({
    type: "line", x0: x, x1: x, y0: 0, y1: 1, yref: "paper", line: { color: colour("accent"), width: 2, dash: "dot" },
  })) : [];
  const most = Math.max(...counts, 1);
  return {
    data: [{
      type: "bar", x: middles, y: counts, width, hovertemplate: "%{x:.4g}: %{y:,.0f}<extra></extra>",
      marker: { color: middles.map((x) => (isInside(x) ? colour("part") : colour("clip"))), line: { width: 0 } },
    }],
    layout: {
      shapes: lines,
      xaxis: { title: { text: "value" }, range: [start - width, end + width] },
      // From below one value on, so that a single one shows.
      yaxis: { type: "log", title: { text: "values" }, range: [Math.log10(0.5), Math.log10(most * 1.6)], dtick: Math.max(1, Math.ceil(Math.log10(most) / 4)), exponentformat: "SI" },
    },
  };
}

/** Quantized values against the float ones. */
function scatterFigure(samples) {
  const x = samples.map((pair) => pair[0]);
  const y = samples.map((pair) => pair[1]);
  const ends = [Math.min(...x, ...y), Math.max(...x, ...y)];
  return {
    data: [
      { type: "scatter", mode: "lines", x: ends, y: ends, line: { color: colour("wire"), width: 1 }, hoverinfo: "skip" },
      { type: "scatter", mode: "markers", x, y, marker: { color: colour("part"), size: 5, opacity: 0.65 }, hovertemplate: "float %{x:.4g}, quantized %{y:.4g}<extra></extra>" },
    ],
    layout: { xaxis: { title: { text: "float" } }, yaxis: { title: { text: "quantized" } } },
  };
}

/** The metric of each point of the frontier against the multiply-adds that stay in float. */
function frontierFigure() {
  const { points, chosen, floatMetric } = DATA.search;
  const x = points.map((point) => point[1] ?? point[2]);
  const label = points.some((point) => point[1] !== null) ? "multiply-adds in float" : "bytes";
  const y = points.map((point) => point[0]);
  const hover = points.map((point, index) => `point ${index}: metric ${toText(point[0])}, ${toText(point[1])} multiply-adds in float, ${toText(point[2])} bytes`);
  const isChosen = points.map((_, index) => index === chosen);
  const level = floatMetric === null ? [] : [{
    type: "line", xref: "paper", x0: 0, x1: 1, y0: floatMetric, y1: floatMetric, line: { color: colour("dim"), width: 1, dash: "dash" },
  }];
  const note = floatMetric === null ? [] : [{ xref: "paper", x: 1, xanchor: "right", y: floatMetric, yanchor: "bottom", text: "float model", showarrow: false, font: { color: colour("dim") } }];
  return {
    data: [{
      type: "scatter", mode: "lines+markers", x, y, text: hover, hovertemplate: "%{text}<extra></extra>",
      line: { color: colour("wire"), width: 1 },
      marker: {
        color: isChosen.map((is) => (is ? colour("error") : colour("part"))), size: isChosen.map((is) => (is ? 15 : 9)),
        symbol: isChosen.map((is) => (is ? "star" : "circle")),
      },
    }],
    layout: { shapes: level, annotations: note, xaxis: { title: { text: label } }, yaxis: { title: { text: "metric" } }, margin: { l: 60, r: 20, t: 20, b: 56 } },
  };
}
