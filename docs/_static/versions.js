// Fills the list of versions in the sidebar. It also works on pages that are opened from disk: nothing is fetched.
(() => {
  const box = document.querySelector(".versions");
  const select = box.querySelector("select");
  const versions = window.hfpVersions;
  if (!versions) return;
  const parts = new URL(box.dataset.root || ".", document.baseURI).pathname.split("/").filter(Boolean);
  const here = decodeURIComponent(parts[parts.length - 1] || "");
  select.replaceChildren(
    ...versions.map(({ name, newest }) => new Option(newest ? `${name} (newest release)` : name, name, false, name === here))
  );
  select.addEventListener("change", () => {
    const chosen = versions.find(({ name }) => name === select.value);
    const page = chosen.pages.includes(box.dataset.page) ? box.dataset.page : "index";
    location.href = new URL(`${box.dataset.root}../${chosen.name}/${page}.html`, document.baseURI);
  });
})();
