/* The search of the pages runs in a web worker, which browsers refuse to pages opened from the disk. Then this class,
   which the theme looks for by its name, runs the worker's script in a hidden frame. */
if (location.protocol === "file:") {
  window.IFrameWorker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      document.documentElement.appendChild(frame)
      const inside = frame.contentWindow
      inside.postMessage = data => this.dispatchEvent(new MessageEvent("message", { data }))
      this.send = data => inside.dispatchEvent(new MessageEvent("message", { data }))
      this.waiting = []
      const script = inside.document.createElement("script")
      script.src = new URL(url, document.baseURI)
      script.onload = () => {
        for (const data of this.waiting) this.send(data)
        this.waiting = null
      }
      inside.document.body.appendChild(script)
    }

    postMessage(data) {
      if (this.waiting) this.waiting.push(data)
      else this.send(data)
    }
  }
  window.Worker = window.IFrameWorker
}
