// What the page is read by: the numbers behind a figure beside the pointer, tables in another order, and both as files.
// Without scripts the page says the same. Nothing here asks the network for anything.
"use strict"

// As the page writes numbers: three digits or more, a true minus sign. `like` are numbers to be rounded alike.
const shown = (value, like = [value]) => {
  const known = like.filter(Number.isFinite)
  const largest = Math.max(...known.map(Math.abs), 0)
  const small = largest > 0 && largest < 0.1 ? Math.min(2 - Math.floor(Math.log10(largest)), 8) : 2
  const decimals = largest >= 100 || known.every(Number.isInteger) ? 0 : largest >= 10 ? 1 : small
  const text = value.toLocaleString("en-US", { minimumFractionDigits: decimals, maximumFractionDigits: decimals })
  return text.replace("-", "\u2212")
}
const shownExactly = (value) => value.toLocaleString("en-US", { maximumSignificantDigits: 6 }).replace("-", "\u2212")

// The panels of a figure, whose series refer to arrays of numbers that they share.
const panelsOf = (text) => {
  const { numbers, panels } = JSON.parse(text)
  const whole = (series) => Object.fromEntries(Object.entries(series).map(([key, each]) =>
    [key, ["x", "value", "low", "high", "atX", "atY"].includes(key) ? numbers[each] : each]))
  return panels.map((panel) => ({ ...panel, series: panel.series.map(whole) }))
}
const interval = (series, i) =>
  series.low && series.low[i] !== null ? [series.low[i], series.high[i]] : null

const csv = (rows) => rows.map((row) => row.map(quoted).join(",") + "\n").join("")
const quoted = (field) => {
  const text = field === null || field === undefined ? "" : String(field)
  return /[",\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text
}

// What tells one panel of a figure from another.
const panelName = (panel, panels) =>
  panel.title || (new Set(panels.map((each) => each.y)).size > 1 ? panel.y : panel.x)

// A row a point; level lines have no x.
const valuesAsRows = (panels) => {
  const names = new Set(panels.map((panel) => panel.x))
  const several = panels.length > 1
  const head = ["series", names.size > 1 ? "x" : panels[0].x || "x", panels[0].measure, "low", "high"]
  const rows = panels.flatMap((panel) => panel.series.flatMap((series) => {
    const points = "level" in series
      ? [[series.name, null, series.level, null, null]]
      : series.x.map((x, i) => [series.name, x, series.value[i], ...(interval(series, i) ?? [null, null])])
    return several ? points.map((point) => [panelName(panel, panels), ...point]) : points
  }))
  return [several ? ["panel", ...head] : head, ...rows]
}

const element = (name, properties = {}, ...children) => {
  const made = Object.assign(document.createElement(name), properties)
  made.append(...children)
  return made
}

const save = (file, blob) => {
  const link = element("a", { href: URL.createObjectURL(blob), download: file })
  link.click()
  setTimeout(() => URL.revokeObjectURL(link.href), 10000)
}
const saveText = (file, kind, text) => save(file, new Blob([text], { type: `${kind};charset=utf-8` }))

// Buttons that save something: {name: function}.
const downloads = (what, choices) => {
  const buttons = Object.entries(choices).map(([name, choose]) =>
    element("button", { type: "button", textContent: name, title: `Save ${what} as ${name}`, onclick: choose }))
  return element("p", { className: "downloads" }, "Save as ", ...buttons)
}
