// Sorts a table by a column whose title is clicked: by its first numbers, or else as text.
const first = (row, column) => {
  const text = row.cells[column].textContent.trim();
  const found = text.match(/^[≈\s]*([+-]?\d[\d,]*(\.\d+)?)/);
  return [found ? Number(found[1].replaceAll(",", "")) : NaN, text];
};
// What has no number comes last either way.
const compare = ([a, x], [b, y], turn) =>
  isNaN(a) || isNaN(b) ? isNaN(a) - isNaN(b) || turn * x.localeCompare(y) : turn * (a - b);
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0], kept = [...body.querySelectorAll(".reference")];
  if (body.rows.length - kept.length < 2) continue;
  const titles = [...table.tHead.rows[0].cells];
  for (const [column, title] of titles.entries()) {
    const sort = () => {
      const turn = title.ariaSort === "descending" ? 1 : -1;
      const rows = [...body.rows].filter((row) => !kept.includes(row));
      const keys = new Map(rows.map((row) => [row, first(row, column)]));
      rows.sort((a, b) => compare(keys.get(a), keys.get(b), turn));
      body.append(...rows, ...kept);
      titles.forEach((each) => (each.ariaSort = "none"));
      title.ariaSort = turn === 1 ? "ascending" : "descending";
    };
    title.tabIndex = 0;
    title.className = "sorts";
    title.addEventListener("click", sort);
    title.addEventListener("keydown", (event) => event.key === "Enter" && sort());
  }
}
