// Canvas players of moving balls. Data come from a JSON block in each figure; nothing is fetched, nothing is written.
"use strict";
for (const figure of document.querySelectorAll("figure.player")) {
  const find = (name) => figure.querySelector(name);
  const data = JSON.parse(find("script").textContent);
  const still = matchMedia("(prefers-reduced-motion: reduce)");
  const dark = matchMedia("(prefers-color-scheme: dark)");
  const last = data.frames - 1;
  let sample = 0, time = 0, playing = false, wanted = !still.matches, before = null, colours = {};

  // numbers travel as 16-bit fractions of a range; the largest stands for "absent"
  const unpack = (packed, [low, high]) => {
    const bytes = Uint8Array.from(atob(packed), (c) => c.charCodeAt(0)), view = new DataView(bytes.buffer);
    return Float32Array.from({ length: bytes.length / 2 }, (_, i) => {
      const value = view.getUint16(2 * i, true);
      return value === 65535 ? NaN : low + ((high - low) * value) / 65534;
    });
  };
  const [left, bottom, right, top] = data.view, wide = right - left, high = top - bottom;
  const radius = unpack(data.radius.values, data.radius.range);
  const panels = [...figure.querySelectorAll(".panel")].map((node, index) => {
    const packed = data.panels[index];
    return {
      node, canvas: node.querySelector("canvas"),
      x: unpack(packed.x, data.range), ghost: packed.ghost ? unpack(packed.ghost, data.range) : null,
      series: packed.series.map((series, row) => ({
        ...series, values: unpack(series.values, series.range),
        canvas: node.querySelectorAll(".series canvas")[row], output: node.querySelectorAll(".series output")[row],
      })),
    };
  });

  const paint = () => {
    const style = getComputedStyle(figure);
    for (const name of ["ink", "soft", "accent"]) colours[name] = style.getPropertyValue("--" + name);
    colours.series = [0, 1, 2, 3, 4, 5].map((i) => style.getPropertyValue("--series-" + i));
  };
  const at = (values, frame, ball) => {
    const i = ((sample * data.frames + frame) * data.balls + ball) * 2;
    return [values[i], values[i + 1]];
  };
  const between = (values, moment, ball) => {
    const frame = Math.min(Math.floor(moment), last), part = moment - frame;
    const [x0, y0] = at(values, frame, ball), [x1, y1] = at(values, Math.min(frame + 1, last), ball);
    return [x0 + part * (x1 - x0), y0 + part * (y1 - y0)];
  };
  const size = (ball) => radius[(sample * data.balls + ball) % radius.length];
  const overlaps = (values, frame) => {
    const hit = new Set();
    for (let i = 0; i < data.balls; i++) {
      const [x, y] = at(values, frame, i), r = size(i), slack = 0.03 * r;
      if (data.box && (x - r < -slack || y - r < -slack || x + r > data.box[0] + slack || y + r > data.box[1] + slack)) hit.add(i);
      for (let j = 0; j < i; j++) {
        const [u, v] = at(values, frame, j);
        if (Math.hypot(x - u, y - v) < r + size(j) - slack) { hit.add(i); hit.add(j); }
      }
    }
    return hit;
  };
  const fit = (canvas, ratio) => {
    const scale = devicePixelRatio || 1, width = Math.max(1, Math.round(canvas.clientWidth * scale));
    const height = Math.max(1, Math.round(ratio ? width * ratio : canvas.clientHeight * scale));
    if (canvas.width !== width || canvas.height !== height) { canvas.width = width; canvas.height = height; }
    const pen = canvas.getContext("2d");
    pen.setTransform(1, 0, 0, 1, 0, 0);
    pen.clearRect(0, 0, width, height);
    return pen;
  };

  const drawPanel = (panel) => {
    const pen = fit(panel.canvas, high / wide), unit = panel.canvas.width / wide, pixel = devicePixelRatio || 1;
    const X = (x) => (x - left) * unit, Y = (y) => (top - y) * unit;
    if (data.box) {
      pen.lineWidth = 2 * pixel;
      pen.strokeStyle = colours.soft;
      pen.strokeRect(X(0) - pixel, Y(data.box[1]) - pixel, data.box[0] * unit + 2 * pixel, data.box[1] * unit + 2 * pixel);
    }
    const paused = still.matches && !playing;  // a still reader sees the whole path at once
    const begin = paused ? 0 : Math.max(0, time - data.trail), end = paused ? last : time;
    for (let ball = 0; ball < data.balls; ball++) {
      const colour = colours.series[ball % 6];
      pen.strokeStyle = pen.fillStyle = colour;
      pen.lineWidth = 1.6 * pixel;
      pen.lineCap = "round";
      for (let k = Math.ceil(begin); k <= Math.floor(end); k++) {
        const age = paused ? 0.45 : 0.12 + 0.5 * (1 - (time - k) / data.trail), [x, y] = at(panel.x, k, ball);
        pen.globalAlpha = age;
        pen.beginPath();
        pen.arc(X(x), Y(y), 1.7 * pixel, 0, 7);
        pen.fill();
        const [u, v] = k + 1 <= end ? at(panel.x, k + 1, ball) : between(panel.x, end, ball);
        pen.beginPath();
        pen.moveTo(X(x), Y(y));
        pen.lineTo(X(u), Y(v));
        pen.stroke();
      }
      pen.globalAlpha = 1;
    }
    const marked = overlaps(panel.x, Math.round(time));
    for (let ball = 0; ball < data.balls; ball++) {
      const [x, y] = between(panel.x, time, ball), r = size(ball) * unit, colour = colours.series[ball % 6];
      if (panel.ghost) {
        const [u, v] = between(panel.ghost, time, ball);
        pen.setLineDash([4 * pixel, 3 * pixel]);
        pen.lineWidth = 1.4 * pixel;
        pen.strokeStyle = colours.ink;
        pen.beginPath();
        pen.arc(X(u), Y(v), r, 0, 7);
        pen.stroke();
        pen.setLineDash([]);
      }
      pen.beginPath();
      pen.arc(X(x), Y(y), r, 0, 7);
      pen.fillStyle = colour;
      pen.globalAlpha = panel.ghost ? 0.78 : 0.92;
      pen.fill();
      pen.globalAlpha = 1;
      if (marked.has(ball)) {
        pen.beginPath();
        pen.arc(X(x), Y(y), r + 3 * pixel, 0, 7);
        pen.lineWidth = 2 * pixel;
        pen.strokeStyle = colours.ink;
        pen.stroke();
      }
    }
  };
  const drawSeries = (series) => {
    const pen = fit(series.canvas, 0), { width, height } = series.canvas, pixel = devicePixelRatio || 1;
    const [low, high] = series.range, room = 3 * pixel;
    const X = (k) => room + (k / Math.max(last, 1)) * (width - 2 * room);
    const Y = (value) => height - room - ((value - low) / (high - low || 1)) * (height - 2 * room);
    const value = (k) => series.values[sample * data.frames + k];
    pen.strokeStyle = colours.soft;
    pen.lineWidth = 1.4 * pixel;
    pen.lineJoin = "round";
    pen.beginPath();
    for (let k = 0; k <= last; k++) pen.lineTo(X(k), Y(value(k)));
    pen.stroke();
    const frame = Math.min(Math.floor(time), last), part = time - frame;
    const now = value(frame) + part * (value(Math.min(frame + 1, last)) - value(frame));
    pen.fillStyle = colours.accent;
    pen.beginPath();
    pen.arc(X(time), Y(now), 2.8 * pixel, 0, 7);
    pen.fill();
    series.output.textContent = Number.isFinite(now) ? now.toPrecision(3) : "–";
  };

  const play = find(".play"), range = find("input"), clock = find(".time"), which = find(".which");
  const draw = () => {
    for (const panel of panels) { drawPanel(panel); panel.series.forEach(drawSeries); }
    const seconds = (time * data.dt).toFixed(2);
    range.value = time;
    range.setAttribute("aria-valuetext", `frame ${Math.round(time) + 1} of ${data.frames}, time ${seconds}`);
    clock.textContent = "t " + seconds;
    which.textContent = `${sample + 1} of ${data.samples}`;
    figure.dataset.frame = time.toFixed(2);
    figure.dataset.sample = sample;
    figure.dataset.playing = playing;
  };
  const tick = (now) => {
    if (!playing) return;
    if (before !== null) time += ((now - before) / 1000) * (last / data.seconds);
    before = now;
    if (time > last + 0.15 * last) time = 0;  // rest on the last frame before starting again
    const shown = time;
    time = Math.min(time, last);
    draw();
    time = shown;
    requestAnimationFrame(tick);
  };
  const run = (on) => {
    if (on === playing) return;
    playing = on;
    before = null;
    if (on && time >= last) time = 0;
    time = Math.min(time, last);
    play.textContent = on ? "Pause" : "Play";
    draw();
    if (on) requestAnimationFrame(tick);
  };
  const seek = (moment) => { run(false); wanted = false; time = Math.max(0, Math.min(last, moment)); draw(); };
  const show = (other) => { sample = (other + data.samples) % data.samples; time = playing ? 0 : Math.min(time, last); draw(); };

  play.addEventListener("click", () => { wanted = !playing; run(wanted); });
  range.addEventListener("input", () => seek(Number(range.value)));
  find(".back").addEventListener("click", () => show(sample - 1));
  find(".next").addEventListener("click", () => show(sample + 1));
  figure.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: -1, ArrowDown: -1, ArrowRight: 1, ArrowUp: 1 }[event.key];
    if (event.key === " " && event.target.tagName !== "BUTTON") { wanted = !playing; run(wanted); }
    else if (step) seek(Math.round(time) + step);
    else if (event.key === "Home") seek(0);
    else if (event.key === "End") seek(last);
    else return;
    event.preventDefault();
  });
  // moves only while it is looked at, and only for readers who like motion
  new IntersectionObserver(([entry]) => run(wanted && entry.isIntersecting), { threshold: 0.3 }).observe(find(".panels"));
  new ResizeObserver(draw).observe(find(".panels"));
  dark.addEventListener("change", () => { paint(); draw(); });
  still.addEventListener("change", () => { wanted = !still.matches; run(wanted); });
  for (const control of figure.querySelectorAll("[hidden]")) control.hidden = false;
  if (data.samples === 1) find(".samples").hidden = true;
  paint();
  draw();
  figure.dataset.ready = "yes";
}
