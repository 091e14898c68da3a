// The page as a whole.

VIEW = new GraphView();
describeNothing();

if (DATA.search) {
  const holder = document.getElementById("frontier-plot");
  // Unpacking the library of plots can wait until it is scrolled to.
  new IntersectionObserver((entries, observer) => {
    if (entries.some((entry) => entry.isIntersecting)) { observer.disconnect(); plot(holder, frontierFigure); }
  }, { rootMargin: "600px" }).observe(holder);
}

/** Draw in the colours of the page what has them from a script. */
function drawAgain() {
  VIEW.drawStrip();
  drawPlotsAgain();
}
window.matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawAgain);

// Paper is white, and nothing on it unfolds. Rows stay as they are, or tables would go over dozens of pages.
let unfolded = [];
window.addEventListener("beforeprint", () => {
  document.documentElement.classList.add("on-paper");
  buildTables();
  unfolded = [...document.querySelectorAll("details:not([open])")];
  unfolded.forEach((details) => { details.open = true; });
  drawAgain();
});
window.addEventListener("afterprint", () => {
  document.documentElement.classList.remove("on-paper");
  unfolded.forEach((details) => { details.open = false; });
  drawAgain();
});

// An operator may be named in the address, so that it can be linked to.
const named = new URLSearchParams(window.location.hash.slice(1)).get("node");
if (named !== null && OPERATOR_BY_NAME.has(named)) choose(OPERATOR_BY_NAME.get(named), true);
document.documentElement.dataset.ready = "yes";

// The tables lie below what is seen first, so they can wait until that is drawn.
function buildInIdleTime() {
  if (buildTables(1)) (window.requestIdleCallback ?? setTimeout)(buildInIdleTime);
  else document.documentElement.dataset.complete = "yes";
}
requestAnimationFrame(() => setTimeout(buildInIdleTime));
