// Each figure is an SVG already; where scripts run, Vega draws it again with values under the pointer and a menu to save it.
for (const place of document.querySelectorAll(".live")) {
  const specification = JSON.parse(document.getElementById(place.id.replace(/live$/, "specification")).textContent);
  const still = place.innerHTML;
  vegaEmbed(place, specification, {
    renderer: "svg",
    actions: { export: true, source: false, compiled: false, editor: false },
    downloadFileName: place.parentElement.id,
  }).then(({ view }) => {
    const drawn = place.querySelector("svg");
    drawn.setAttribute("role", "img");
    drawn.setAttribute("aria-label", specification.title);
  }).catch(() => { place.innerHTML = still; });
}
