// Tables: a click on a column's head sorts by it, a second one the other way, a third restores the first order.

const MISSING = /^[\u2013\u2212-]?$/ // nothing, or a dash
const NUMBER = /^([+\u2212-]?)([\d,]*\.?\d+)\s?([kMB](?![A-Za-z]))?/
const UNITS = { k: 1e3, M: 1e6, B: 1e9 }

// What a cell is about: its value without the interval, its name without what is below it.
const mainText = (cell) => {
  const copy = (cell.querySelector(".value") ?? cell).cloneNode(true)
  copy.querySelector(".size")?.remove()
  return copy.textContent.trim()
}
const sortNumber = (text) => {
  const found = NUMBER.exec(text)
  if (!found) return null
  const size = Number(found[2].replaceAll(",", "")) * (UNITS[found[3]] ?? 1)
  return found[1] && found[1] !== "+" ? -size : size
}

const comparison = (texts) => {
  const known = texts.filter((text) => !MISSING.test(text))
  const numeric = known.length > 0 && known.every((text) => sortNumber(text) !== null)
  const compare = numeric
    ? (a, b) => sortNumber(a) - sortNumber(b)
    : (a, b) => a.localeCompare(b, "en", { numeric: true })
  return { numeric, compare }
}

// What is missing comes last, and averages stay below what they are of.
const sortRows = (rows, column, direction) => {
  const text = new Map(rows.map((row) => [row, mainText(row.cells[column])]))
  const { compare } = comparison([...text.values()])
  const sign = direction === "descending" ? -1 : 1
  const rank = (row) => (row.classList.contains("aggregate") ? 2 : MISSING.test(text.get(row)) ? 1 : 0)
  return [...rows].sort((a, b) =>
    rank(a) - rank(b) || (rank(a) === 0 ? sign * compare(text.get(a), text.get(b)) : 0))
}

const makeSortable = (table) => {
  const body = table.tBodies[0]
  const heads = [...table.tHead.rows[0].cells]
  const first = [...body.rows]
  if (first.length < 2) return
  heads.forEach((head, column) => {
    const { numeric } = comparison(first.map((row) => mainText(row.cells[column])))
    const turns = numeric ? ["descending", "ascending", null] : ["ascending", "descending", null]
    const button = element("button", { type: "button", title: "Sort by this column", className: "sort" },
      ...head.childNodes)
    button.onclick = () => {
      const next = turns[(turns.indexOf(head.getAttribute("aria-sort")) + 1) % turns.length]
      for (const each of heads) each.removeAttribute("aria-sort")
      if (next) head.setAttribute("aria-sort", next)
      body.append(...(next ? sortRows(first, column, next) : first))
    }
    head.append(button)
  })
  table.classList.add("sortable")
}

// Numbers as programs read them; any other text as it is.
const field = (text) => {
  if (MISSING.test(text)) return ""
  return /^[+\u2212-]?[\d,]*\.?\d+$/.test(text) ? text.replaceAll(",", "").replace("\u2212", "-").replace("+", "") : text
}
const ends = (cell) => /\[(.*)\]/.exec(cell.querySelector(".interval")?.textContent ?? "")?.[1].split(/,\s+/) ?? ["", ""]

// Three columns where cells are `173 [160, 186]`, and two where names have something below them.
const tableAsRows = (table) => {
  const heads = [...table.tHead.rows[0].cells].map(mainText)
  const rows = [...table.tBodies[0].rows].map((row) => [...row.cells])
  const has = (part, i) => rows.some((row) => row[i].querySelector(part))
  const columns = heads.map((head, i) => {
    if (has(".interval", i)) return [[head, `${head}, low`, `${head}, high`], (cell) => [mainText(cell), ...ends(cell)]]
    const below = (cell) => cell.querySelector(".size")?.textContent.trim() ?? ""
    return has(".size", i) ? [[head, "Size"], (cell) => [mainText(cell), below(cell)]] : [[head], (cell) => [mainText(cell)]]
  })
  return [columns.flatMap(([names]) => names),
    ...rows.map((row) => row.flatMap((cell, i) => columns[i][1](cell).map(field)))]
}

for (const table of document.querySelectorAll("table")) {
  if (!table.tHead) continue
  const rows = () => csv(tableAsRows(table))
  const buttons = downloads("this table", { CSV: () => saveText(`${table.dataset.file}.csv`, "text/csv", rows()) })
  const frame = table.closest(".scroll") ?? table
  const caption = frame.nextElementSibling
  ;(caption?.matches(".caption") ? caption : frame).after(buttons)
  makeSortable(table)
}
