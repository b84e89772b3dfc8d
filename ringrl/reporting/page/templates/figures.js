// Figures: values beside the pointer, by touch and by arrow keys; and the figure as SVG, PNG and CSV.

const SVG_NAME = "http://www.w3.org/2000/svg"
const NEAR = 14 // units of the SVG around a panel that still point into it
const TOGETHER = 3 // units between points of two series that are read together

// matplotlib's scales: a value as a number that grows evenly along the axis.
const along = ([name, ...rest]) => {
  if (name === "log") return Math.log
  if (name !== "symlog") return (value) => value
  const [base, threshold, share] = rest
  const linear = share / (1 - 1 / base)
  return (value) => {
    const size = Math.abs(value)
    if (size <= threshold) return value * linear
    return Math.sign(value) * threshold * (linear + Math.log(size / threshold) / Math.log(base))
  }
}

// The functions that turn a panel's values into positions in the SVG.
const placement = ([left, top, right, bottom, x, y]) => {
  const axis = (scale, begin, end) => {
    const grows = along(scale)
    const [low, high] = scale.slice(-2).map(grows)
    return (value) => begin + ((grows(value) - low) / (high - low)) * (end - begin)
  }
  return { left, top, right, bottom, x: axis(x, left, right), y: axis(y, bottom, top) }
}

const readable = (plot, panels) => {
  const svg = plot.querySelector("svg")
  const placements = JSON.parse(svg.dataset.panels).map(placement)
  return panels.map((panel, n) => {
    const place = placements[n]
    const series = panel.series.filter((each) => each.x?.length).map((each) => ({
      ...each,
      px: each.x.map((x) => place.x(x)),
      at: (each.atX ?? each.x).map((x, i) => [place.x(x), place.y((each.atY ?? each.value)[i])]),
    }))
    const lines = series.filter((each) => !each.cloud)
    const levels = panel.series.filter((each) => "level" in each)
    return { ...panel, place, name: panels.length > 1 ? panelName(panel, panels) : "", lines, levels, clouds: series }
  })
}

const nearest = (numbers, wanted) =>
  numbers.reduce((best, number, i) => (Math.abs(number - wanted) < Math.abs(numbers[best] - wanted) ? i : best), 0)

// What a panel shows at a place: {x, left, rows: [{series, i}]}; with lines all that have a point at the nearest x.
const readingAt = (panel, left, top) => {
  if (!panel.lines.length) {
    const every = panel.clouds.flatMap((series) => series.at.map((_, i) => ({ series, i })))
    const distances = every.map(({ series, i }) => Math.hypot(series.at[i][0] - left, series.at[i][1] - top))
    const found = every[nearest(distances, 0)]
    return { x: found.series.x[found.i], left: found.series.at[found.i][0], rows: [found] }
  }
  const points = panel.lines.map((series) => ({ series, i: nearest(series.px, left) }))
  const close = points[nearest(points.map(({ series, i }) => series.px[i]), left)]
  const at = close.series.px[close.i]
  const beside = panel.lines.map((series) => ({ series, i: nearest(series.px, at) }))
  const rows = beside.filter(({ series, i }) => Math.abs(series.px[i] - at) <= TOGETHER && series.value[i] !== null)
  rows.sort((a, b) => b.series.value[b.i] - a.series.value[a.i])
  return { x: close.series.x[close.i], left: at, rows }
}

const tip = element("div", { className: "tip", hidden: true })
tip.setAttribute("role", "status")
document.body.append(tip)
let pointed = null // the plot whose values are shown

const hide = () => {
  tip.hidden = true
  pointed?.querySelector(".guide")?.remove()
  pointed = null
}

const drawGuide = (plot, panel, reading) => {
  const group = document.createElementNS(SVG_NAME, "g")
  group.setAttribute("class", "guide")
  const add = (name, attributes) => {
    const mark = document.createElementNS(SVG_NAME, name)
    for (const [key, value] of Object.entries(attributes)) mark.setAttribute(key, value)
    group.append(mark)
  }
  const { top, bottom } = panel.place
  add("line", { x1: reading.left, x2: reading.left, y1: top, y2: bottom })
  for (const { series, i } of reading.rows) {
    add("circle", { cx: series.at[i][0], cy: series.at[i][1], r: 4, style: `stroke:${series.colour}` })
  }
  plot.querySelector("svg").append(group)
}

const row = (name, colour, numbers) => {
  const chip = element("span", { className: "chip", textContent: name })
  chip.style.setProperty("--series", colour)
  const ends = numbers[1] === null ? "" : ` [${numbers.slice(1).map((each) => shown(each, numbers)).join(", ")}]`
  const value = element("b", { textContent: shown(numbers[0], numbers) })
  return element("tr", {}, element("td", {}, chip), element("td", {}, value, ends))
}

const show = (plot, panel, reading, top) => {
  hide()
  pointed = plot
  drawGuide(plot, panel, reading)
  const rows = reading.rows.map(({ series, i }) => {
    return row(series.name, series.colour, [series.value[i], ...(interval(series, i) ?? [null])])
  })
  const levels = panel.levels.map((each) => row(each.name, each.colour, [each.level, null]))
  const heading = panel.name && panel.name !== panel.x ? `${panel.name} \u00b7 ` : ""
  tip.replaceChildren(
    element("p", { textContent: `${heading}${panel.x} ${shownExactly(reading.x)}` }),
    element("table", {}, element("tbody", {}, ...rows, ...levels)))
  tip.hidden = false
  const box = plot.querySelector("svg").getBoundingClientRect()
  const unit = box.width / plot.querySelector("svg").viewBox.baseVal.width
  const place = box.left + reading.left * unit
  const room = document.documentElement.clientWidth
  const beside = place + 14 + tip.offsetWidth < room ? place + 14 : place - 14 - tip.offsetWidth
  tip.style.left = `${Math.max(6, Math.min(beside, room - tip.offsetWidth - 6)) + scrollX}px`
  tip.style.top = `${box.top + top * unit + scrollY}px`
}

const makeReadable = (plot, panels) => {
  const read = readable(plot, panels)
  const svg = plot.querySelector("svg")
  const inside = (left, top) => read.find(({ place }) =>
    left > place.left - NEAR && left < place.right + NEAR && top > place.top - NEAR && top < place.bottom + NEAR)
  const point = (event) => {
    const box = svg.getBoundingClientRect()
    const unit = svg.viewBox.baseVal.width / box.width
    const [left, top] = [(event.clientX - box.left) * unit, (event.clientY - box.top) * unit]
    const panel = inside(left, top)
    if (panel) show(plot, panel, readingAt(panel, left, top), Math.max(panel.place.top, top - 20))
    else hide()
  }
  plot.addEventListener("pointermove", point)
  plot.addEventListener("pointerdown", point)
  plot.addEventListener("pointerleave", (event) => event.pointerType === "mouse" && hide())

  // Arrow keys go from one x to the next, panel after panel.
  const stops = read.flatMap((panel) => {
    const from = panel.lines.length ? panel.lines : panel.clouds
    const stopped = [...new Set(from.flatMap((series) => series.px))].sort((a, b) => a - b)
    return stopped.map((left) => ({ panel, left }))
  })
  let stop = -1
  const moves = { ArrowRight: 1, ArrowLeft: -1, Home: -Infinity, End: Infinity }
  plot.tabIndex = 0
  plot.setAttribute("aria-label", `${plot.getAttribute("aria-label")} Arrow keys read its values.`)
  plot.addEventListener("keydown", (event) => {
    if (event.key === "Escape") hide()
    if (!(event.key in moves)) return
    event.preventDefault()
    stop = Math.max(0, Math.min(stop + moves[event.key], stops.length - 1))
    const { panel, left } = stops[stop]
    show(plot, panel, readingAt(panel, left, panel.place.bottom), panel.place.top)
  })
  plot.addEventListener("blur", hide)
}

// A figure by itself: light, on white, with colours and fonts that the page's style sheet gave it.
const lightVariables = () => {
  const rules = [...document.styleSheets[0].cssRules].filter((rule) => rule.selectorText === ":root")
  return Object.fromEntries(rules.flatMap((rule) =>
    [...rule.style].filter((name) => name.startsWith("--")).map((name) => [name, rule.style.getPropertyValue(name)])))
}

const alone = (svg, title) => {
  const variables = lightVariables()
  const box = svg.getBBox()
  const { width, height } = svg.viewBox.baseVal
  const left = Math.min(0, box.x) - 8
  const top = Math.min(0, box.y) - 8
  const size = [Math.max(width, box.x + box.width) + 8 - left, Math.max(height, box.y + box.height) + 8 - top]
  const copy = svg.cloneNode(true)
  copy.querySelector(".guide")?.remove()
  delete copy.dataset.panels
  const settings = { width: size[0], height: size[1], viewBox: [left, top, ...size].join(" "), "stroke-linejoin": "round",
    style: `font-family:${variables["--sans"].trim()};font-variant-numeric:tabular-nums` }
  for (const [name, value] of Object.entries(settings)) copy.setAttribute(name, value)
  const paper = document.createElementNS(SVG_NAME, "rect")
  for (const [name, value] of Object.entries({ x: left, y: top, width: size[0], height: size[1], fill: "#fff" })) {
    paper.setAttribute(name, value)
  }
  const heading = document.createElementNS(SVG_NAME, "title")
  heading.textContent = title
  copy.prepend(heading, paper)
  const text = new XMLSerializer().serializeToString(copy)
  return { text: text.replace(/var\((--[\w-]+)\)/g, (_, name) => variables[name].trim()), size }
}

const SHARPNESS = 3 // pixels of a PNG a unit of the SVG
const savePng = async (file, { text, size }) => {
  const image = new Image()
  image.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(text)}`
  await image.decode()
  const canvas = element("canvas", { width: size[0] * SHARPNESS, height: size[1] * SHARPNESS })
  canvas.getContext("2d").drawImage(image, 0, 0, canvas.width, canvas.height)
  canvas.toBlob((blob) => save(file, blob))
}

for (const figure of document.querySelectorAll("figure[data-file]")) {
  const [wide, narrow] = figure.querySelectorAll(".plot")
  const { file } = figure.dataset
  const title = figure.querySelector(".figure-title").textContent
  const present = () => (getComputedStyle(wide).display === "none" ? narrow : wide)
  const drawn = () => alone(present().querySelector("svg"), title)
  const choices = {
    SVG: () => saveText(`${file}.svg`, "image/svg+xml", drawn().text),
    PNG: () => savePng(`${file}.png`, drawn()),
  }
  if (wide.dataset.values) {
    const numbers = new Map([wide, narrow].map((plot) => [plot, panelsOf(plot.dataset.values || wide.dataset.values)]))
    for (const [plot, panels] of numbers) makeReadable(plot, panels)
    choices.CSV = () => saveText(`${file}.csv`, "text/csv", csv(valuesAsRows(numbers.get(present()))))
  }
  figure.querySelector("figcaption").append(downloads("this figure", choices))
}

// A film is on paper as its first picture.
for (const video of document.querySelectorAll("video")) {
  const picture = () => {
    const canvas = element("canvas", { className: "printed", width: video.videoWidth, height: video.videoHeight })
    canvas.getContext("2d").drawImage(video, 0, 0)
    video.after(canvas)
  }
  if (video.readyState >= HTMLMediaElement.HAVE_CURRENT_DATA) picture()
  else video.addEventListener("loadeddata", picture, { once: true })
}
document.addEventListener("pointerdown", (event) => pointed && !pointed.contains(event.target) && hide())
