// Filters the support matrix. The choice is kept in the address, so that it can be sent to someone.
document.addEventListener("DOMContentLoaded", () => {
  const form = document.getElementById("support-filters");
  if (!form) return;
  const rows = [...document.querySelectorAll("#support-matrix tbody tr")];
  const controls = [...form.querySelectorAll("[data-filter]")];
  const count = form.querySelector("output");

  const fits = (row, { dataset, value }) => {
    const wanted = value.trim().toLowerCase();
    if (!wanted) return true;
    const found = row.dataset[dataset.filter];
    return dataset.filter === "names" ? found.includes(wanted) : found.split(" ").includes(wanted);
  };

  const filter = () => {
    let shown = 0;
    for (const row of rows) {
      row.hidden = !controls.every((control) => fits(row, control));
      shown += row.hidden ? 0 : 1;
    }
    count.value = shown === rows.length ? `${shown} rows` : `${shown} of ${rows.length} rows`;
    const chosen = controls.filter((control) => control.value).map((control) => [control.dataset.filter, control.value]);
    const address = new URLSearchParams(chosen).toString();
    history.replaceState(null, "", address ? `#${address}` : location.pathname + location.search);
  };

  const read = () => {
    const asked = new URLSearchParams(location.hash.slice(1));
    for (const control of controls) control.value = asked.get(control.dataset.filter) ?? "";
    filter();
  };

  form.addEventListener("input", filter);
  form.addEventListener("submit", (event) => event.preventDefault());
  window.addEventListener("hashchange", read);
  if (location.hash.includes("=")) read();
});
